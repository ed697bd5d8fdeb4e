"""How fast a build answers on this machine: latency, throughput, memory, power, and against another build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.bench.latency import Latency, Plan
    from edge.bench.measure import Conditions, choose_batches, compare, measure_build
    from edge.bench.power import find_monitor
    from edge.bench.results import BenchReport, ComparisonReport

_PUBLIC = by_name(
    {
        "edge.bench.latency": ("Latency", "Plan"),
        "edge.bench.measure": ("Conditions", "choose_batches", "compare", "measure_build"),
        "edge.bench.power": ("find_monitor",),
        "edge.bench.results": ("BenchReport", "ComparisonReport"),
    }
)

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
__getattr__ = lazy_exports(__name__, _PUBLIC)
