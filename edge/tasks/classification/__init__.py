"""Classification: one class per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.tasks.classification.task import Classification

_PUBLIC = {"Classification": "edge.tasks.classification.task"}

__all__ = ["Classification"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
