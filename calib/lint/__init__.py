"""Why a Q/DQ graph, ours or a stranger's, would be refused by TensorRT or fall back to float without a word.

The rules were checked against the parser and the built engines of TensorRT-RTX 1.7; FP16 scales against ONNX Runtime too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from calib.lint.finding import RULES, Finding, Severity
    from calib.lint.run_lint import lint_graph

_PUBLIC = by_name(
    {
        "calib.lint.finding": ("RULES", "Finding", "Severity"),
        "calib.lint.run_lint": ("lint_graph",),
    }
)

__all__ = ["RULES", "Finding", "Severity", "lint_graph"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
