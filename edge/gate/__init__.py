"""The regression gate: a build compared with a reviewed baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.gate.baseline import Baseline, LatencyRatio, read_baseline
    from edge.gate.compare_builds import GateReport, gate
    from edge.gate.update import update_baseline

_PUBLIC = {
    "Baseline": "edge.gate.baseline",
    "GateReport": "edge.gate.compare_builds",
    "LatencyRatio": "edge.gate.baseline",
    "gate": "edge.gate.compare_builds",
    "read_baseline": "edge.gate.baseline",
    "update_baseline": "edge.gate.update",
}

__all__ = ["Baseline", "GateReport", "LatencyRatio", "gate", "read_baseline", "update_baseline"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
