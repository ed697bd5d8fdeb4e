"""How far an engine has drifted from its FP32 reference, and whether that is too far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.drift.drift_report import DriftReport, Source, judge_sides
    from edge.drift.stored_reference import StoredAnswers, read_stored

_PUBLIC = {
    "DriftReport": "edge.drift.drift_report",
    "Source": "edge.drift.drift_report",
    "StoredAnswers": "edge.drift.stored_reference",
    "judge_sides": "edge.drift.drift_report",
    "read_stored": "edge.drift.stored_reference",
}

__all__ = ["DriftReport", "Source", "StoredAnswers", "judge_sides", "read_stored"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
