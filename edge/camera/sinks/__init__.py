"""Where results go: terminal, JSON lines, video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.camera.sinks.json_lines import JsonLines, summary_fields
    from edge.camera.sinks.recorder import Recorder
    from edge.camera.sinks.terminal import LiveView, PlainLines, print_summary

_PUBLIC = by_name(
    {
        "edge.camera.sinks.json_lines": ("JsonLines", "summary_fields"),
        "edge.camera.sinks.recorder": ("Recorder",),
        "edge.camera.sinks.terminal": ("LiveView", "PlainLines", "print_summary"),
    }
)

__all__ = ["JsonLines", "LiveView", "PlainLines", "Recorder", "print_summary", "summary_fields"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
