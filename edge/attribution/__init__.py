"""Where a build drifts from its FP32 reference: which layer, and what is wrong if anything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.attribution.attribute import attribute_build, attribute_graphs
    from edge.attribution.attribution_record import Attribution, DriftFinding, read_attribution
    from edge.attribution.build_graphs import load_graphs

_PUBLIC = {
    "Attribution": "edge.attribution.attribution_record",
    "DriftFinding": "edge.attribution.attribution_record",
    "attribute_build": "edge.attribution.attribute",
    "attribute_graphs": "edge.attribution.attribute",
    "load_graphs": "edge.attribution.build_graphs",
    "read_attribution": "edge.attribution.attribution_record",
}

__all__ = ["Attribution", "DriftFinding", "attribute_build", "attribute_graphs", "load_graphs", "read_attribution"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
