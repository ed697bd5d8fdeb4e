"""From a tensor of the attention back to the linear layer that computes it, and to the LayerNorm that this layer reads.

    LayerNorm -> [Slice, Gather ...] -> z (., N, C) -> MatMul W, Add b -> [Reshape, Transpose, Split ...] -> (B, H, N, D)

Which channel of the layer becomes which channel of which head, and the order of its tokens, are not assumed but computed: the
nodes in between are run on the numbers of the layer's outputs. A tensor that cannot be traced is not an error: it has no
certified bound and cannot be folded.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from calib.graph import attribute, index_graph, infer_types, to_array
from calib.graph_segments import part
from edge.stability.finders.xnorm import XNormSite
from edge.stability.observed_ranges import Float64, Int64

_REARRANGING = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Flatten"})
_SELECTING = frozenset({"Identity", "Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape"})
"""Nodes that select or regroup tokens: what is true of every token before them is true after them."""


@dataclass(frozen=True)
class LayerNorm:
    """LayerNormalization over the last axis: gain and bias (C,)."""

    gain: Float64
    bias: Float64


@dataclass(frozen=True)
class Projection:
    """A linear layer z W + b that computes a tensor of the attention.

    Attributes:
        weight: name of the constant W (C, channels).
        bias: name of the constant b (channels,), empty without one.
        matmul: name of the MatMul node.
        channels: int64 (H, D): the channel of the layer at each place of each head.
        matrix: W by head, float64 (H, D, C).
        offset: b by head, float64 (H, D).
        norm: the LayerNorm that the layer reads, None when there is none.
        source: name of the tensor z.
        order: int64, the token of z at each place; two tensors of equal source and order hold the same tokens.
        owned: whether its channels are read for this one tensor alone, so that they may be scaled.
    """

    weight: str
    bias: str
    matmul: str
    channels: Int64
    matrix: Float64
    offset: Float64
    norm: LayerNorm | None
    source: str
    order: Int64
    owned: bool


@dataclass(frozen=True)
class SiteLayers:
    """The linear layers that feed a site.

    Attributes:
        layers: one for "q", keys and values for "kv"; empty where they cannot be traced.
        tokens: N, over how many products K^T V sums; 0 for "q" and where the graph does not fix it.
    """

    layers: tuple[Projection, ...]
    tokens: int

    @property
    def scalable(self) -> tuple[Projection, ...]:
        """The layers if they may be multiplied by powers of two: nothing else reads them."""
        return self.layers if all(layer.owned for layer in self.layers) else ()


def trace_sites(model: onnx.ModelProto, sites: Iterable[XNormSite]) -> list[SiteLayers]:
    """Trace each site of a graph back to its linear layers."""
    tracer = _Tracer(model)
    return [tracer.site(site) for site in sites]


class _Tracer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.index, self.types = model, index_graph(model), infer_types(model)

    def site(self, site: XNormSite) -> SiteLayers:
        if site.axis not in (-1, -2):
            return SiteLayers((), 0)
        if site.operand == "q":
            layer = self.projection(site.argument, -2 if site.axis == -1 else -1, site.nodes)
            return SiteLayers((layer,) if layer else (), 0)
        keys, values = site.factors
        key, value = self.projection(keys, -1, site.nodes), self.projection(values, -2, site.nodes)
        shape = self._shape(values)
        return SiteLayers((key, value) if key and value else (), (shape[-2] if shape else None) or 0)

    def projection(self, tensor: str, token_axis: int, readers: Collection[str]) -> Projection | None:
        """The linear layer that computes `tensor`, (B, H, N, D), (B, N, D) or (B, D); None for none.

        N is at the negative `token_axis`; `readers`: names of the nodes that may read `tensor`.
        """
        chain: list[onnx.NodeProto] = []
        current = tensor
        while (node := self.index.producer(current)) is not None and node.op_type in _REARRANGING:
            chain.append(node)
            current = node.input[0]
        layer, shape = self._linear(current), self._shape(current)
        traced = self._channels(chain, current, tensor, shape, token_axis) if layer and shape else None
        if layer is None or traced is None:
            return None
        (matmul, weight, bias), (channels, order) = layer, traced
        matrix = to_array(self.index.constants[weight]).astype(np.float64).T[channels]  # (H, D, C)
        offset = (
            to_array(self.index.constants[bias]).reshape(-1)[channels].astype(np.float64) if bias else np.zeros(channels.shape)
        )
        norm = self._layer_norm(matmul.input[0], matrix.shape[-1])
        name = self.index.names[self.index.producers[matmul.output[0]]]
        owned = self._owned([matmul.output[0], *(node.input[0] for node in chain)], tensor, readers)
        return Projection(weight, bias, name, channels, matrix, offset, norm, matmul.input[0], order, owned)

    def _shape(self, tensor: str) -> tuple[int | None, ...] | None:
        return self.types[tensor].shape if tensor in self.types else None

    def _linear(self, tensor: str) -> tuple[onnx.NodeProto, str, str] | None:
        """The MatMul, its weight (C, channels) and its bias ("" for none) that compute a tensor."""
        node = self.index.producer(tensor)
        bias = ""
        if node is not None and node.op_type == "Add":
            constants = [t for t in node.input if t in self.index.constants]
            others = [t for t in node.input if t not in self.index.constants]
            if len(constants) != 1 or len(others) != 1:
                return None
            bias, node = constants[0], self.index.producer(others[0])
        if node is None or node.op_type != "MatMul" or node.input[1] not in self.index.constants:
            return None
        weight = self.index.constants[node.input[1]]
        dims = list(self.index.constants[bias].dims) if bias else []
        if len(weight.dims) != 2 or (bias and not dims) or (dims and not int(np.prod(dims)) == dims[-1] == weight.dims[1]):
            return None
        return node, node.input[1], bias

    def _channels(
        self, chain: list[onnx.NodeProto], source: str, target: str, shape: tuple[int | None, ...], token_axis: int
    ) -> tuple[Int64, Int64] | None:
        """Channel numbers (H, D) and token numbers (B, N) at the end of a chain of rearranging nodes, last first."""
        if not {t for node in chain for t in node.input[1:] if t} <= self.index.constants.keys():
            return None
        sides = [1 if side is None else side for side in shape]
        result = np.arange(int(np.prod(sides)), dtype=np.int64).reshape(sides)
        if chain:
            rearranging = part(self.model, chain[::-1], [target], [onnx.ValueInfoProto(name=source)])
            try:
                (rearranged,) = ReferenceEvaluator(rearranging).run(None, {source: result})
                result = np.asarray(rearranged)
            except Exception:  # noqa: BLE001  # the evaluator's errors share no base class; a chain it cannot run is not traced
                return None
        if result.ndim == 2:
            result = result[:, None]  # an embedding (B, D): one token
        if result.ndim not in (3, 4):
            return None
        by_head = np.moveaxis(result if result.ndim == 4 else result[:, None], token_axis, 2)  # (B, H, N, D)
        tokens, channels = np.divmod(by_head, sides[-1])
        first, order = channels[0, :, 0], tokens[:, 0, :, 0]
        same = (channels == first[None, :, None]).all() and (tokens == order[:, None, :, None]).all()
        return (first, order) if same and np.unique(first).size == first.size else None

    def _owned(self, path: list[str], tensor: str, readers: Collection[str]) -> bool:
        """Whether all readers on the way to `tensor` compute it, or select other channels of a joint layer."""
        outputs = {v.name for v in self.model.graph.output}
        own = {self.index.names[i] for i in self.index.consumers.get(tensor, ())} <= set(readers)
        return own and not outputs & {tensor, *path} and all(self._read_once(name) for name in path if name != tensor)

    def _read_once(self, tensor: str) -> bool:
        readers = [self.model.graph.node[i].op_type for i in self.index.consumers.get(tensor, ())]
        return len([op for op in readers if op != "Shape"]) <= 1 or set(readers) <= {"Slice", "Gather"}

    def _layer_norm(self, tensor: str, width: int) -> LayerNorm | None:
        node = self.index.producer(tensor)
        while node is not None and node.op_type in _SELECTING:
            shape = self._shape(node.input[0])
            if shape is None or shape[-1] != width or self._selects_channels(node, len(shape)):
                return None  # tokens may have been selected or regrouped, never their channels
            node = self.index.producer(node.input[0])
        if node is None or node.op_type != "LayerNormalization" or len(node.input) < 2:
            return None
        shape = self._shape(node.input[0])
        last = (-1,) if shape is None else (-1, len(shape) - 1)
        affine = [t for t in node.input[1:3] if t]
        if int(attribute(node, "axis", -1)) not in last or any(t not in self.index.constants for t in affine):
            return None
        values = [to_array(self.index.constants[t]).astype(np.float64).reshape(-1) for t in affine]
        gain, bias = values[0], values[1] if len(values) > 1 else np.zeros(width)
        return LayerNorm(gain, bias) if gain.size == width == bias.size else None

    def _selects_channels(self, node: onnx.NodeProto, rank: int) -> bool:
        """Whether a Slice or Gather selects along the last axis, or may."""
        axes = [int(attribute(node, "axis", 0))] if node.op_type == "Gather" else []
        if node.op_type == "Slice":
            if len(node.input) < 4 or node.input[3] not in self.index.constants:
                return True
            axes = to_array(self.index.constants[node.input[3]]).tolist()
        return any(axis in (-1, rank - 1) for axis in axes)
