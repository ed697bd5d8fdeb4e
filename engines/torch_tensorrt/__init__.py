"""torch-tensorrt backend: the ONNX graph as a torch program, compiled in a separate Python environment."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from engines.torch_tensorrt.backend import Environment, build_engine, find_environment
    from engines.torch_tensorrt.onnx_program import Program, export_program

__all__ = ["Environment", "Program", "build_engine", "export_program", "find_environment"]
__getattr__ = lazy_exports(__name__, __file__)
