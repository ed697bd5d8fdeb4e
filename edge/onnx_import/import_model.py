"""ONNX file -> the graph that the rest of the flow understands: the passes, in order."""

from pathlib import Path

from edge.onnx_import.imported import Imported, ImportOptions

OPSET = 20
"""The newest that the parsers of TensorRT 10.0 and later all read."""


def import_onnx(path: Path, options: ImportOptions) -> Imported:
    """Read any ONNX file. Raises GraphError, UsageError."""
    raise NotImplementedError(path, options)
