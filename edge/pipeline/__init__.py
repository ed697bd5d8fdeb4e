"""From a request to a finished build folder, and what is done with a finished one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.pipeline.build import build_model
    from edge.pipeline.build_from_bundle import DeviceRequest, build_on_device
    from edge.pipeline.build_request import BuildRequest
    from edge.pipeline.calibrate import calibrate_file
    from edge.pipeline.calibrate_request import CalibrateRequest
    from edge.pipeline.judge_request import JudgeRequest
    from edge.pipeline.pack_bundle import make_bundle
    from edge.pipeline.rejudge import redraw, rejudge_build
    from edge.pipeline.step import BuildOutcome

_PUBLIC = {
    "BuildOutcome": "edge.pipeline.step",
    "BuildRequest": "edge.pipeline.build_request",
    "CalibrateRequest": "edge.pipeline.calibrate_request",
    "DeviceRequest": "edge.pipeline.build_from_bundle",
    "JudgeRequest": "edge.pipeline.judge_request",
    "build_model": "edge.pipeline.build",
    "build_on_device": "edge.pipeline.build_from_bundle",
    "calibrate_file": "edge.pipeline.calibrate",
    "make_bundle": "edge.pipeline.pack_bundle",
    "redraw": "edge.pipeline.rejudge",
    "rejudge_build": "edge.pipeline.rejudge",
}

__all__ = [
    "BuildOutcome",
    "BuildRequest",
    "CalibrateRequest",
    "DeviceRequest",
    "JudgeRequest",
    "build_model",
    "build_on_device",
    "calibrate_file",
    "make_bundle",
    "redraw",
    "rejudge_build",
]
__getattr__ = lazy_exports(__name__, _PUBLIC)
