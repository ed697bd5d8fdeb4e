"""Lint a Q/DQ graph, ours or a foreign one: what TensorRT would refuse, or silently run in float.

The rules were checked against the parser and the built engines of TensorRT-RTX 1.7; FP16 scales against ONNX Runtime too.
"""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from calib.lint.finding import RULES
    from calib.lint.run_lint import lint_graph

__all__ = ["RULES", "lint_graph"]
__getattr__ = lazy_exports(__name__, __file__)
