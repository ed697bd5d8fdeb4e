"""How fast a build answers on this machine: latency, throughput, memory, power, and against another build."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.bench.latency import Latency, Plan
    from edge.bench.measure import Conditions, choose_batches, compare, measure_build
    from edge.bench.power import find_monitor
    from edge.bench.results import BenchReport, ComparisonReport

__all__ = [
    "BenchReport",
    "ComparisonReport",
    "Conditions",
    "Latency",
    "Plan",
    "choose_batches",
    "compare",
    "find_monitor",
    "measure_build",
]
__getattr__ = lazy_exports(__name__, __file__)
