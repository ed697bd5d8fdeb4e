"""TensorRT and TensorRT-RTX backends, and the only module that imports their Python API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from engines.trt.api import Builder, Runtime, load
    from engines.trt.network import define_network
    from engines.trt.rtx_backend import build_plan
    from engines.trt.timing_cache import TimingCache
    from engines.trt.trt_backend import build_engine

_PUBLIC = {
    "Builder": "engines.trt.api",
    "Runtime": "engines.trt.api",
    "TimingCache": "engines.trt.timing_cache",
    "build_engine": "engines.trt.trt_backend",
    "build_plan": "engines.trt.rtx_backend",
    "define_network": "engines.trt.network",
    "load": "engines.trt.api",
}

__all__ = ["Builder", "Runtime", "TimingCache", "build_engine", "build_plan", "define_network", "load"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
