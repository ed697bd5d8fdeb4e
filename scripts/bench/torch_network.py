"""A network in half precision, operator by operator, by torch on the CPU: an oracle for what FP16 makes of it.

Nothing of the toolkit computes here. Every float tensor, weights included, is rounded to FP16, and so is every result; torch's
half kernels keep sums, statistics of norms and exponentials of a softmax in FP32, and round once. A target that widens less
loses more. In FP32 the same code shows that it computes the network at all.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from torch import Tensor
from torch_operators import OPERATORS, to_tensor


class TorchNetwork:
    """A float network in torch, all of its float tensors in one dtype."""

    def __init__(self, model: onnx.ModelProto, dtype: torch.dtype) -> None:
        self.nodes, self.dtype = list(model.graph.node), dtype
        self.constants = {tensor.name: self._typed(to_tensor(tensor)) for tensor in model.graph.initializer}
        (self.source,) = (value.name for value in model.graph.input if value.name not in self.constants)
        self.outputs = [value.name for value in model.graph.output]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs, floats in FP32 or float64, of images as the network takes them."""
        values: dict[str, Any] = {**self.constants, "": None, self.source: self._typed(images)}
        for node in self.nodes:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Split" and "split" not in attributes and len(node.input) == 1:
                attributes["num_outputs"] = len(node.output)
            found = OPERATORS[node.op_type](*(values[name] for name in node.input), **attributes)
            found = found if isinstance(found, tuple) else (found,)
            values.update((name, self._typed(value)) for name, value in zip(node.output, found, strict=False) if name)
        found = {name: values[name] for name in self.outputs}
        return {name: value.float() if value.dtype == torch.float16 else value for name, value in found.items()}

    def _typed(self, values: Tensor) -> Tensor:
        return values.to(self.dtype) if values.is_floating_point() else values
