"""Import: any ONNX file as people export it becomes the graph that the rest of the flow understands."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.onnx_import.check_rewrites import rewrite
    from edge.onnx_import.import_model import import_onnx
    from edge.onnx_import.import_record import IMPORT_ARTIFACT, ImportRecord
    from edge.onnx_import.imported import Change, ImageInput, Imported, ImportOptions
    from edge.onnx_import.option_values import parse_constant_input, parse_input_shape

__all__ = [
    "IMPORT_ARTIFACT",
    "Change",
    "ImageInput",
    "ImportOptions",
    "ImportRecord",
    "Imported",
    "import_onnx",
    "parse_constant_input",
    "parse_input_shape",
    "rewrite",
]
__getattr__ = lazy_exports(__name__, __file__)
