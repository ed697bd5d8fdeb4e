"""Drift: how far an engine's outputs are from those of its FP32 reference, and whether that is within the budget."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.drift.drift_report import DriftReport, judge_sides

__all__ = ["DriftReport", "judge_sides"]
__getattr__ = lazy_exports(__name__, __file__)
