"""Write layouts of tokens so that TensorRT-RTX needs fewer steps; not a single value changes.

    tokens to image   Transpose(0, 2, 1), Reshape (B, C, *S)   ->   Reshape (B, *S, C), Transpose(0, r - 1, 1, ..., r - 2)
    image to tokens   Reshape (B, C, N), Transpose(0, 2, 1)    ->   Transpose(0, 2, ..., r - 1, 1), Reshape (B, N, C)
    heads             of both operands a, b (B, N, C) of a product: Reshape (B, N, H, D), Transpose(0, 2, 1, 3)
                      ->   Concat (B, N, 2C), Reshape (B, N, 2H, D), Transpose(0, 2, 1, 3), Split into heads of a, of b

The first two leave tokens as they lie in memory, which convolutions read and write without a step of their own: the norm before
and the residual addition after them stay whole. The third makes one step of two where the operands are projections of one
tensor, which RTX computes as one product; an operand that is transposed further, K^T, gets that as another Transpose. Products
of a softmax attention are left alone: RTX fuses them with their layouts. Figures: docs/float-layers.md.

For graphs after quantization: scales, certificates and verdicts do not depend on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from calib.attention_products import attention_products
from calib.graph import attribute, infer_types, tensors_read
from calib.graph_editor import GraphEditor

_CHANNELS_FIRST = (0, 2, 1)
_HEADS_FIRST, _HEADS_FIRST_TRANSPOSED = (0, 2, 1, 3), (0, 2, 3, 1)
_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_PROJECTION = ("Add", "MatMul", "DequantizeLinear", "QuantizeLinear")


def merge_layouts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph, rewritten as the module's docstring says; its outputs are the same bit by bit.

    Patterns whose sizes ONNX's shape inference does not tell are left alone. Raises GraphError where it fails on the graph.
    """
    rewriting = _Rewriting(model)
    rewriting.merge_heads()
    rewriting.move_channels()
    return rewriting.finish()


@dataclass(frozen=True)
class _Heads:
    """An operand of a product: tokens `source` (B, N, C) reshaped to `sizes` (N, H, D), then transposed."""

    source: str
    reshape: onnx.NodeProto
    transpose: onnx.NodeProto
    sizes: tuple[int, int, int]

    @property
    def turned(self) -> bool:
        """Whether it is (B, H, D, N), not (B, H, N, D)."""
        return _permutation(self.transpose) == _HEADS_FIRST_TRANSPOSED


class _Rewriting:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._editor = GraphEditor(model)
        self._index = self._editor.index
        self._types = infer_types(model)
        self._dropped: set[str] = set()
        self._added: list[onnx.NodeProto] = []

    def finish(self) -> onnx.ModelProto:
        """The rewritten graph, each node after those that it reads."""
        model = self._editor.finish(())
        graph = model.graph
        nodes = _in_order([node for node in graph.node if node.output[0] not in self._dropped], self._added)
        computed = {name for node in nodes for name in node.output}
        values = [value for value in graph.value_info if value.name in computed]
        read = tensors_read(nodes, graph.output)
        initializers = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.node[:], graph.value_info[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(initializers)
        graph.value_info.extend(values)
        return model

    def move_channels(self) -> None:
        """Tokens to image, image to tokens: of two nodes, the reshape comes first, or last."""
        for second in self._index.nodes.values():
            first = self._single_source(second)
            operators = (first.op_type, second.op_type) if first is not None else ()
            if first is None or operators not in (("Transpose", "Reshape"), ("Reshape", "Transpose")):
                continue
            to_image = second.op_type == "Reshape"
            transpose, reshape = (first, second) if to_image else (second, first)
            ends = (first.input[0], second.output[0])
            sizes = self._image(*(ends if to_image else ends[::-1])) if _permutation(transpose) == _CHANNELS_FIRST else ()
            if not sizes:
                continue
            rank = len(sizes) + 1
            permutation = (0, rank - 1, *range(1, rank - 1)) if to_image else (0, *range(2, rank), 1)
            between = self._editor.new_name(f"{first.output[0]}/channels_last")
            target = (0, *sizes) if to_image else (0, math.prod(sizes[:-1]), sizes[-1])
            shape = self._editor.add_constant(f"{between}/shape", np.array(target, np.int64))
            turned = helper.make_node("Transpose", [ends[0]], [between], name=transpose.name, perm=permutation)
            shaped = helper.make_node("Reshape", [between, shape], [ends[1]], name=reshape.name)
            if to_image:
                turned.input[0], turned.output[0], shaped.input[0], shaped.output[0] = between, ends[1], ends[0], between
            first.CopyFrom(shaped if to_image else turned)
            second.CopyFrom(turned if to_image else shaped)

    def merge_heads(self) -> None:
        """Both operands of every product of projections of one tensor."""
        softmax = {name for products in attention_products(self._editor.model) for name in products}
        for name, node in self._index.nodes.items():
            if node.op_type != "MatMul" or name in softmax:
                continue
            operands = [self._heads(tensor) for tensor in node.input[:2]]
            first, second = operands
            if first is None or second is None or first.sizes != second.sizes or first.transpose is second.transpose:
                continue
            if (root := self._projected(first.source)) is not None and root == self._projected(second.source):
                self._merge(name, (first, second))

    def _single_source(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node whose output is the first input of this one, and read by nothing else."""
        tensor = node.input[0] if node.input else ""
        alone = len(self._index.consumers.get(tensor, ())) == 1 and tensor not in self._editor.read_elsewhere
        return self._index.producer(tensor) if alone else None

    def _sizes(self, tensor: str) -> tuple[int, ...]:
        """The known sizes of a tensor after its batch; empty if one is not known."""
        shape = self._types[tensor].shape if tensor in self._types else None
        sizes = [size for size in (shape or ())[1:] if size is not None]
        return tuple(sizes) if shape is not None and len(sizes) == len(shape) - 1 else ()

    def _image(self, tokens: str, image: str) -> tuple[int, ...]:
        """Sizes (*S, C) of an image (B, C, *S) made of tokens (B, N, C), or the reverse; empty if they are something else."""
        length, (channels, *sides) = self._sizes(tokens), self._sizes(image) or (0,)
        return (*sides, channels) if len(sides) > 1 and length == (math.prod(sides), channels) else ()

    def _heads(self, tensor: str) -> _Heads | None:
        """What an operand is made of, past its Q/DQ."""
        while (node := self._index.producer(tensor)) is not None and node.op_type in _PAIRS:
            tensor = node.input[0]
        reshape = self._single_source(node) if node is not None and node.op_type == "Transpose" else None
        if node is None or reshape is None or reshape.op_type != "Reshape" or tensor in self._editor.read_elsewhere:
            return None
        sizes, length = self._sizes(reshape.output[0]), self._sizes(reshape.input[0])
        if _permutation(node) not in (_HEADS_FIRST, _HEADS_FIRST_TRANSPOSED) or len(sizes) != 3:
            return None
        tokens, heads, channels = sizes
        return (
            _Heads(reshape.input[0], reshape, node, (tokens, heads, channels)) if length == (tokens, heads * channels) else None
        )

    def _projected(self, tensor: str) -> str | None:
        """The tensor that a linear layer, with or without bias and Q/DQ, projects; None for another operator."""
        multiplied = False
        while (node := self._index.producer(tensor)) is not None and node.op_type in _PROJECTION:
            read = [name for name in node.input[:2] if name not in self._index.constant_like]
            if len(read) != 1 or (multiplied and node.op_type not in _PAIRS):
                break
            multiplied, tensor = multiplied or node.op_type == "MatMul", read[0]
        return tensor if multiplied else None

    def _merge(self, product: str, operands: tuple[_Heads, _Heads]) -> None:
        editor, (_, heads, channels) = self._editor, operands[0].sizes
        joined, split, turned = (editor.new_name(f"{product}/heads_{part}") for part in ("joined", "split", "first"))
        shape = editor.add_constant(f"{split}/shape", np.array((0, 0, 2 * heads, channels), np.int64))
        sizes = editor.add_constant(f"{turned}/sizes", np.array((heads, heads), np.int64))
        results, last = list[str](), list[onnx.NodeProto]()
        for operand in operands:
            end = operand.transpose.output[0]
            results.append(editor.new_name(f"{end}/untransposed") if operand.turned else end)
            if operand.turned:
                name = operand.transpose.name
                last.append(helper.make_node("Transpose", [results[-1]], [end], name=name, perm=(0, 1, 3, 2)))
            self._dropped |= {operand.reshape.output[0], end}
        self._added += [
            helper.make_node("Concat", [operand.source for operand in operands], [joined], name=joined, axis=-1),
            helper.make_node("Reshape", [joined, shape], [split], name=split),
            helper.make_node("Transpose", [split], [turned], name=turned, perm=_HEADS_FIRST),
            helper.make_node("Split", [turned, sizes], results, name=editor.new_name(f"{product}/heads"), axis=1),
            *last,
        ]


def _permutation(transpose: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(attribute(transpose, "perm", ()))


def _in_order(nodes: Sequence[onnx.NodeProto], added: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """All nodes, each after those that it reads: `nodes` as they stand where they can, `added` where they are read first."""
    producers = {name: at for at, node in enumerate((*nodes, *added)) for name in node.output}
    placed: dict[int, onnx.NodeProto] = {}

    def place(at: int) -> None:
        node = nodes[at] if at < len(nodes) else added[at - len(nodes)]
        for name in node.input:
            if (before := producers.get(name)) is not None and before not in placed:
                place(before)
        placed[at] = node

    for at in range(len(nodes)):
        if at not in placed:
            place(at)
    return list(placed.values())
