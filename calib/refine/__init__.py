"""What improves a plain post-training quantization: one method per file, each of them optional.

`effort` says which of them an effort uses, `apply_refinements` carries them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from calib.refine.apply_refinements import Refined, refine_graph
    from calib.refine.effort import EFFORTS, Effort, resolve_effort

_PUBLIC = by_name(
    {
        "calib.refine.apply_refinements": ("Refined", "refine_graph"),
        "calib.refine.effort": ("EFFORTS", "Effort", "resolve_effort"),
    }
)

__all__ = ["EFFORTS", "Effort", "Refined", "refine_graph", "resolve_effort"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
