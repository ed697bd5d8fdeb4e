"""torch-tensorrt backend: the ONNX graph as a torch program, compiled in a separate Python environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from engines.torch_tensorrt.backend import Environment, build_engine, find_environment
    from engines.torch_tensorrt.onnx_program import Program, export_program

_PUBLIC = {
    "Environment": "engines.torch_tensorrt.backend",
    "Program": "engines.torch_tensorrt.onnx_program",
    "build_engine": "engines.torch_tensorrt.backend",
    "export_program": "engines.torch_tensorrt.onnx_program",
    "find_environment": "engines.torch_tensorrt.backend",
}

__all__ = ["Environment", "Program", "build_engine", "export_program", "find_environment"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
