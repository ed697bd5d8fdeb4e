"""Find the linear layers that read a quantized activation, and view them as matrix products of patches.

Every Conv, Gemm and MatMul with constant weights is, at each output position, a product of its input patch with a matrix:

    y[n, g, :] = x[n, g, :] W[g]        x (n, G, K) patches    W (G, K, N)

    MatMul, Gemm    G = 1, K input and N output features, n every position of the other axes
    Conv            G groups, K = C/G * kernel size, N = output channels per group, n every output position; padding is 0
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import GraphIndex, attribute, index_graph, to_array
from calib.qdq_placement import QuantPlan

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """How patches are extracted from an activation (im2col): equal for readers that can share them.

    Attributes:
        groups: G.
        kernel, strides, pads, dilations: of a 2-D Conv, pads in ONNX order; empty for MatMul and Gemm.
    """

    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    @property
    def padded(self) -> bool:
        """Whether some patches extend beyond the border."""
        return any(self.pads)

    def channels(self, count: int) -> NDArray[np.intp]:
        """(G, K): index, out of `count` channels of the activation, of each element of a patch."""
        per_patch = int(np.prod(self.kernel, dtype=np.intp))
        return np.repeat(np.arange(count), per_patch).reshape(self.groups, -1)

    def length(self, values: NDArray[Any]) -> int:
        """K of the patches of an activation."""
        if not self.kernel:
            return int(values.shape[-1])
        return int(values.shape[1]) // self.groups * int(np.prod(self.kernel, dtype=np.intp))

    def patches(self, values: NDArray[Any], count: int, random: np.random.Generator) -> Float32:
        """At most `count` patches (n, G, K) of an activation, at positions sampled without replacement."""
        if not self.kernel:
            vectors = values.reshape(-1, values.shape[-1])
            return np.ascontiguousarray(vectors[_sample(len(vectors), count, random)], np.float32)[:, None, :]
        images, _, height, width = values.shape
        rows, columns = (self._starts(size, axis) for axis, size in enumerate((height, width)))
        shape = (images, len(rows), len(columns))
        image, row, column = np.unravel_index(_sample(images * len(rows) * len(columns), count, random), shape)
        at_row = rows[row][:, None, None] + self.dilations[0] * np.arange(self.kernel[0])[:, None]  # (n, kh, 1)
        at_column = columns[column][:, None, None] + self.dilations[1] * np.arange(self.kernel[1])  # (n, 1, kw)
        inside = (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
        picked = values[image[:, None, None], :, at_row.clip(0, height - 1), at_column.clip(0, width - 1)]  # (n, kh, kw, C)
        picked = np.where(inside[..., None], picked, np.float32(0)).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(picked, np.float32).reshape(len(picked), self.groups, -1)

    def _starts(self, size: int, axis: int) -> NDArray[np.intp]:
        """First index that each patch reads along an axis of `size`; negative in the padding."""
        extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        count = (size + self.pads[axis] + self.pads[axis + 2] - extent) // self.strides[axis] + 1
        return np.arange(count) * self.strides[axis] - self.pads[axis]


@dataclass(frozen=True)
class Reader:
    """One linear layer that reads a quantized activation: node name, activation, weight constant, patch geometry.

    `transposed` is whether a Gemm's weight is (N, K).
    """

    node: str
    tensor: str
    weight: str
    geometry: Geometry
    transposed: bool = False

    @property
    def axis(self) -> int:
        """Axis of the output channels in the weight as stored in the graph."""
        return 0 if self.geometry.kernel or self.transposed else 1

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        """(G, K, N) of a weight as stored in the graph."""
        if self.geometry.kernel:
            by_group = weight.reshape(self.geometry.groups, weight.shape[0] // self.geometry.groups, -1)
            return np.asarray(by_group.transpose(0, 2, 1))
        return np.asarray((weight.T if self.transposed else weight)[None])

    def weight_of(self, matrix: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The weight in the shape stored in the graph, of a matrix (G, K, N)."""
        if self.geometry.kernel:
            return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(shape)
        return np.ascontiguousarray(matrix[0].T if self.transposed else matrix[0])


def find_readers(model: onnx.ModelProto, plan: QuantPlan) -> dict[str, tuple[Reader, ...]]:
    """Quantized activations whose quantized readers are all linear layers of one geometry, in graph order.

    Left out are operands of products of two activations, of weights on the left and of weights of three axes or more, Gemms
    that transpose or scale the activation (`transA`, `alpha`), and Convs that are not 2-D or use `auto_pad`.
    """
    index = index_graph(model)
    weights = {p.node: p.tensor for p in plan.points if p.kind == "weight" and p.input_index == 1}
    readers: dict[str, list[Reader | None]] = {}
    for point in plan.points:
        if point.kind == "activation":
            weight = weights.get(point.node)
            reader = _reader(index.nodes[point.node], point.node, weight, index) if weight is not None else None
            readers.setdefault(point.tensor, []).append(reader)
    linear = {tensor: tuple(r for r in of_tensor if r is not None) for tensor, of_tensor in readers.items()}
    return {t: r for t, r in linear.items() if len(r) == len(readers[t]) and len({one.geometry for one in r}) == 1}


def _reader(node: onnx.NodeProto, name: str, weight: str, index: GraphIndex) -> Reader | None:
    if node.op_type != "Conv":
        if len(index.constants[weight].dims) != 2 or attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
            return None
        return Reader(name, node.input[0], weight, Geometry(), bool(attribute(node, "transB", 0)))
    shape = to_array(index.constants[weight]).shape
    if len(shape) != 4 or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    geometry = Geometry(
        groups=int(attribute(node, "group", 1)),
        kernel=tuple(shape[2:]),
        strides=tuple(attribute(node, "strides", (1, 1))),
        pads=tuple(attribute(node, "pads", (0, 0, 0, 0))),
        dilations=tuple(attribute(node, "dilations", (1, 1))),
    )
    return Reader(name, node.input[0], weight, geometry)


def product(patches: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    """(n, G, K) x (G, K, N) -> (n, G, N), in the precision of its operands."""
    if matrix.shape[0] == 1:
        return np.asarray((patches[:, 0] @ matrix[0])[:, None])
    return np.asarray(np.einsum("ngk,gkm->ngm", patches, matrix))


def _sample(size: int, count: int, random: np.random.Generator) -> NDArray[np.intp]:
    return np.asarray(np.sort(random.choice(size, min(size, count), replace=False)))
