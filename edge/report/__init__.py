"""The report of a build: one HTML file that opens offline."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.report.page import render

__all__ = ["render"]
__getattr__ = lazy_exports(__name__, __file__)
