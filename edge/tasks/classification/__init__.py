"""Classification: one class per image."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.tasks.classification.task import Classification

__all__ = ["Classification"]
__getattr__ = lazy_exports(__name__, __file__)
