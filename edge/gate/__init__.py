"""The regression gate: compares a build with a reviewed baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.gate.compare_builds import GateReport, gate
    from edge.gate.update import update_baseline

_PUBLIC = {
    "GateReport": "edge.gate.compare_builds",
    "gate": "edge.gate.compare_builds",
    "update_baseline": "edge.gate.update",
}

__all__ = ["GateReport", "gate", "update_baseline"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
