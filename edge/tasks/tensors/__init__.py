"""Tensors: outputs of any number and shape, compared as numbers."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.tasks.tensors.task import Tensors

__all__ = ["Tensors"]
__getattr__ = lazy_exports(__name__, __file__)
