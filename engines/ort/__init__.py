"""ONNX Runtime backend: the engine file is the optimized ONNX model."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from engines.ort.backend import build_optimized, pair_per_reader
    from engines.ort.graph import optimized_evidence

__all__ = ["build_optimized", "optimized_evidence", "pair_per_reader"]
__getattr__ = lazy_exports(__name__, __file__)
