"""Where a build drifts from its FP32 reference: which layer, and what is wrong if anything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.attribution.attribute import attribute_build, attribute_graphs
    from edge.attribution.attribution_record import Attribution, DriftFinding
    from edge.attribution.build_graphs import load_graphs

_PUBLIC = by_name(
    {
        "edge.attribution.attribute": ("attribute_build", "attribute_graphs"),
        "edge.attribution.attribution_record": ("Attribution", "DriftFinding"),
        "edge.attribution.build_graphs": ("load_graphs",),
    }
)

__all__ = ["Attribution", "DriftFinding", "attribute_build", "attribute_graphs", "load_graphs"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
