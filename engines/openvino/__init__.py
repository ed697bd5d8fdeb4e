"""OpenVINO backend: the engine file is the ONNX graph, prepared for OpenVINO, which compiles it where it runs."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from engines.openvino.api import compile_graph, load, read_graph
    from engines.openvino.backend import build_prepared
    from engines.openvino.executed_graph import executed_evidence
    from engines.openvino.qdq_order import quantize_early

__all__ = ["build_prepared", "compile_graph", "executed_evidence", "load", "quantize_early", "read_graph"]
__getattr__ = lazy_exports(__name__, __file__)
