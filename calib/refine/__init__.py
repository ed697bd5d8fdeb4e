"""Refinements of plain post-training quantization, one method per file, each optional.

`effort` lists which of them an effort uses, `apply_refinements` runs them.
"""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from calib.refine.apply_refinements import refine_graph
    from calib.refine.effort import EFFORTS, Effort, resolve_effort

__all__ = ["EFFORTS", "Effort", "refine_graph", "resolve_effort"]
__getattr__ = lazy_exports(__name__, __file__)
