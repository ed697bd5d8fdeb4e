"""Where results go: terminal, JSON lines, video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.camera.sinks.json_lines import JsonLines, summary_fields
    from edge.camera.sinks.recorder import Recorder
    from edge.camera.sinks.terminal import LiveView, PlainLines, print_summary

_PUBLIC = {
    "JsonLines": "edge.camera.sinks.json_lines",
    "LiveView": "edge.camera.sinks.terminal",
    "PlainLines": "edge.camera.sinks.terminal",
    "Recorder": "edge.camera.sinks.recorder",
    "print_summary": "edge.camera.sinks.terminal",
    "summary_fields": "edge.camera.sinks.json_lines",
}

__all__ = ["JsonLines", "LiveView", "PlainLines", "Recorder", "print_summary", "summary_fields"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
