"""Finders of the places in a graph where 16 bits can fail, one file per kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.stability.finders.site import Site
    from edge.stability.finders.xnorm import XNormSite, find_sites

_PUBLIC = by_name(
    {
        "edge.stability.finders.site": ("Site",),
        "edge.stability.finders.xnorm": ("XNormSite", "find_sites"),
    }
)

__all__ = ["Site", "XNormSite", "find_sites"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
