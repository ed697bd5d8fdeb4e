"""On-device inference: a source of frames, the newest through an engine, results to terminal, page, programs and video."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.camera.camera_request import CameraRequest, Limits
    from edge.camera.frame import Frame, Result, Sink
    from edge.camera.loop import Summary
    from edge.camera.session import Outcome, View, run_camera

__all__ = ["CameraRequest", "Frame", "Limits", "Outcome", "Result", "Sink", "Summary", "View", "run_camera"]
__getattr__ = lazy_exports(__name__, __file__)
