"""Build a model into a build folder; judge, report, bundle and calibrate it."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.pipeline.build import build_model
    from edge.pipeline.build_from_bundle import DeviceRequest, build_on_device
    from edge.pipeline.build_request import BuildRequest
    from edge.pipeline.calibrate import calibrate_file
    from edge.pipeline.calibrate_request import CalibrateRequest
    from edge.pipeline.judge_options import JudgeOptions
    from edge.pipeline.pack_bundle import make_bundle
    from edge.pipeline.rejudge import record_speed, redraw, rejudge_build
    from edge.pipeline.workspace import BuildOutcome

__all__ = [
    "BuildOutcome",
    "BuildRequest",
    "CalibrateRequest",
    "DeviceRequest",
    "JudgeOptions",
    "build_model",
    "build_on_device",
    "calibrate_file",
    "make_bundle",
    "record_speed",
    "redraw",
    "rejudge_build",
]
__getattr__ = lazy_exports(__name__, __file__)
