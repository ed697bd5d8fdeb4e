"""Run an engine or its graph: the `Runner` protocol and one file per runtime."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.runtime.engine_runner import open_engine
    from edge.runtime.open_build import RUNNERS, OpenedBuild, open_runner
    from edge.runtime.openvino_runner import OpenVinoRunner
    from edge.runtime.ort_runner import OrtRunner, emulated_runner, run_all
    from edge.runtime.runner import FakeRunner, Runner
    from edge.runtime.trt_runner import TrtRunner

__all__ = [
    "RUNNERS",
    "FakeRunner",
    "OpenVinoRunner",
    "OpenedBuild",
    "OrtRunner",
    "Runner",
    "TrtRunner",
    "emulated_runner",
    "open_engine",
    "open_runner",
    "run_all",
]
__getattr__ = lazy_exports(__name__, __file__)
