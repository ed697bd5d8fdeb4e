"""Convert an ONNX graph to a torch module, node by node, and to a `torch.export` program.

torch-tensorrt takes a torch program where the other backends take an ONNX file. A second implementation of the network could
differ from the first, so the program is converted from the graph that the other backends get: it contains the same scales,
FP32 islands, and folded and refined weights.

    node  ->  a submodule `steps.nI`, where I is the node's position. torch.export keeps the submodule of every operation, so
              that a layer of the engine can be traced back to its node.
    integer initializers, Shape  ->  Python integers, symbolic for the batch

Operators: `engines.torch_tensorrt.onnx_operators`.
"""

import io
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from calib.errors import GraphError
from engines.build_spec import BatchRange
from engines.torch_tensorrt.onnx_operators import FLOATS, Compute, torch_function

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
_INPUTS = {
    **FLOATS,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}


@dataclass(frozen=True)
class Program:
    """A `torch.export` program of an ONNX graph.

    Attributes:
        data: bytes of the .pt2 file; it calls `torch.ops.ufovit` (`engines.torch_tensorrt.torch_qdq`).
        steps: submodule name, without "steps." -> node name; nodes without a name are left out.
        shapes: shapes of the input: (min, opt, max), or one fixed shape.
        input: name of the graph's input; in the program it is "image".
        dtype: of the input, as torch names it.
        outputs: names of the graph's outputs, in order.
    """

    data: bytes
    steps: dict[str, str]
    shapes: tuple[tuple[int, ...], ...]
    input: str
    dtype: str
    outputs: tuple[str, ...]


class OnnxModule(torch.nn.Module):
    """A torch module of an ONNX graph with one input, with the types of the graph.

    Raises GraphError naming the first node that has no torch equivalent.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        initializers = {t.name: t for t in graph.initializer}
        self._integers: dict[str, Any] = {}
        self._buffers_of: dict[str, str] = {}
        for i, (name, tensor) in enumerate(initializers.items()):
            array = numpy_helper.to_array(tensor)
            if tensor.data_type in _INTEGERS:
                self._integers[name] = array.tolist()
            else:
                self.register_buffer(f"w{i}", torch.from_numpy(array.copy()))
                self._buffers_of[name] = f"w{i}"
        self.steps = torch.nn.ModuleDict()
        self._wiring: list[tuple[str, tuple[str, ...], str]] = []
        for i, node in enumerate(graph.node):
            self.steps[f"n{i}"] = _Step(torch_function(node, initializers))
            self._wiring.append((f"n{i}", tuple(node.input), node.output[0]))
        self._input = next(v.name for v in graph.input if v.name not in initializers)
        self._outputs = [value.name for value in graph.output]

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """(B, ...) input -> (B, ...) output, a tuple of them where the graph has several."""
        values = {"": None, **self._integers, **{name: getattr(self, buffer) for name, buffer in self._buffers_of.items()}}
        values[self._input] = image
        for step, inputs, output in self._wiring:
            values[output] = self.steps[step](*(values[name] for name in inputs))
        results: tuple[torch.Tensor, ...] = tuple(values[name] for name in self._outputs)
        return results if len(results) > 1 else results[0]


class _Step(torch.nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self._compute = compute

    def forward(self, *values: Any) -> Any:
        return self._compute(*values)


def export_program(model: onnx.ModelProto, batch: BatchRange) -> Program:
    """Export a graph with one input as a torch program.

    Args:
        model: a flat graph whose input has a fixed shape except for the batch.
        batch: sizes of a symbolic batch; if min equals max, the program has that fixed batch.

    Raises GraphError naming a node without torch equivalent, and for a symbolic dimension other than the batch.
    """
    weights = {i.name for i in model.graph.initializer}
    image = next(v for v in model.graph.input if v.name not in weights)
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in image.type.tensor_type.shape.dim)
    kind = _INPUTS.get(image.type.tensor_type.elem_type)
    if kind is None or -1 in shape[1:]:
        found = f"{shape} of element type {image.type.tensor_type.elem_type}"
        raise GraphError(
            "unsupported graph input",
            where=image.name,
            found=found,
            allowed="a tensor of floats, uint8 or integers; only the batch may be symbolic",
        )
    sizes = (batch.min, batch.opt, batch.max) if shape[0] == -1 else (shape[0],)
    module = OnnxModule(model).eval()
    dynamic = None
    if len(set(sizes)) > 1:
        dynamic = {"image": {0: torch.export.Dim("batch", min=sizes[0], max=sizes[-1])}}
    size = sizes[0] if dynamic is None else max(sizes[0], 2)  # torch.export treats a size of 1 as fixed
    example = torch.zeros(size, *shape[1:], dtype=kind)
    with torch.no_grad():
        exported = torch.export.export(module, (example,), dynamic_shapes=dynamic)
    stream = io.BytesIO()
    torch.export.save(exported, stream)
    steps = {f"n{i}": node.name for i, node in enumerate(model.graph.node) if node.name}
    fixed = sizes[:1] if dynamic is None else sizes
    shapes = tuple((n, *shape[1:]) for n in fixed)
    outputs = tuple(value.name for value in model.graph.output)
    return Program(stream.getvalue(), steps, shapes, image.name, str(kind).removeprefix("torch."), outputs)
