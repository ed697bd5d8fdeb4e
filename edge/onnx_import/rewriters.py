"""All rewriters, in the order in which they are applied."""

from collections.abc import Callable, Mapping

import onnx

from edge.onnx_import.rewritten import Rewritten

Rewriter = Callable[[onnx.ModelProto], list[Rewritten]]

REWRITERS: Mapping[str, Rewriter] = {}
