"""The report of a build: one HTML file that opens offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.report.page import render

_PUBLIC = {"render": "edge.report.page"}

__all__ = ["render"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
