"""Where a build drifts from its FP32 reference: which layer, and what is wrong if anything is."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.attribution.attribute import attribute_build, attribute_graphs
    from edge.attribution.attribution_record import Attribution, DriftFinding
    from edge.attribution.build_graphs import load_graphs

__all__ = ["Attribution", "DriftFinding", "attribute_build", "attribute_graphs", "load_graphs"]
__getattr__ = lazy_exports(__name__, __file__)
