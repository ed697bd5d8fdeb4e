"""Where results go: terminal, JSON lines, video."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.camera.sinks.json_lines import JsonLines, summary_fields
    from edge.camera.sinks.recorder import Recorder
    from edge.camera.sinks.terminal import LiveView, PlainLines, print_summary

__all__ = ["JsonLines", "LiveView", "PlainLines", "Recorder", "print_summary", "summary_fields"]
__getattr__ = lazy_exports(__name__, __file__)
