"""Describe any artifact in readable form."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.inspect.describers import describe_file

__all__ = ["describe_file"]
__getattr__ = lazy_exports(__name__, __file__)
