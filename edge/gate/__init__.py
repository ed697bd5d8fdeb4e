"""The regression gate: compares a build with a reviewed baseline."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.gate.compare_builds import GateReport, gate
    from edge.gate.update import update_baseline

__all__ = ["GateReport", "gate", "update_baseline"]
__getattr__ = lazy_exports(__name__, __file__)
