"""Build a model into a build folder; judge, report, bundle and calibrate it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.pipeline.build import build_model
    from edge.pipeline.build_from_bundle import DeviceRequest, build_on_device
    from edge.pipeline.build_request import BuildRequest
    from edge.pipeline.calibrate import calibrate_file
    from edge.pipeline.calibrate_request import CalibrateRequest
    from edge.pipeline.judge_options import JudgeOptions
    from edge.pipeline.pack_bundle import make_bundle
    from edge.pipeline.rejudge import redraw, rejudge_build
    from edge.pipeline.workspace import BuildOutcome

_PUBLIC = by_name(
    {
        "edge.pipeline.workspace": ("BuildOutcome",),
        "edge.pipeline.build_request": ("BuildRequest",),
        "edge.pipeline.calibrate_request": ("CalibrateRequest",),
        "edge.pipeline.build_from_bundle": ("DeviceRequest", "build_on_device"),
        "edge.pipeline.judge_options": ("JudgeOptions",),
        "edge.pipeline.build": ("build_model",),
        "edge.pipeline.calibrate": ("calibrate_file",),
        "edge.pipeline.pack_bundle": ("make_bundle",),
        "edge.pipeline.rejudge": ("redraw", "rejudge_build"),
    }
)

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
    "redraw",
    "rejudge_build",
]
__getattr__ = lazy_exports(__name__, _PUBLIC)
