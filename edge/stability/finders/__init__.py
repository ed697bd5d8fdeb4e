"""Finders of the places in a graph where 16 bits can fail, one file per kind; `find_network_sites` shares out all tensors."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.stability.finders.network_sites import FoundSites, find_network_sites
    from edge.stability.finders.xnorm import XNormSite, find_sites

__all__ = ["FoundSites", "XNormSite", "find_network_sites", "find_sites"]
__getattr__ = lazy_exports(__name__, __file__)
