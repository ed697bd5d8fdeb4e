"""TensorRT and TensorRT-RTX backends, and the only module that imports their Python API."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from engines.trt.api import Builder, Runtime, load
    from engines.trt.network import define_network
    from engines.trt.rtx_backend import build_plan
    from engines.trt.timing_cache import TimingCache
    from engines.trt.trt_backend import build_engine

__all__ = ["Builder", "Runtime", "TimingCache", "build_engine", "build_plan", "define_network", "load"]
__getattr__ = lazy_exports(__name__, __file__)
