"""Bounds on the tensors of a network that hold for every input, from the weights alone."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.stability.bounds.interval_propagation import bound_tensors
    from edge.stability.bounds.tensor_bounds import Bounds

__all__ = ["Bounds", "bound_tensors"]
__getattr__ = lazy_exports(__name__, __file__)
