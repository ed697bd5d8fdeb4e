"""Factors and shifts carried out in a float graph, which computes the same as before.

A reader of x is to see a x + b instead, with a > 0 and b per channel. Then

    y = x W = (a x + b) (W / a) - (b / a) W

    in front   LayerNormalization, BatchNormalization: scale a, bias a * bias + b. Conv, also through a Relu if b = 0: its
               output channels (cross-layer equalisation, Nagel et al., arXiv 1906.04721). A Clip behind a Conv: b into the
               Conv's bias and both bounds. These cost nothing at run time. Elsewhere a multiplication and an addition per
               element, which TensorRT fuses with what is in front.
    behind     W / a, and -(b / a) W as a bias. A padded Conv reads zeros beyond the border where it would have to read b: there
               the correction is a constant map, (1, C, H, W), added to its output.

With powers of two for a and no b, nothing is rounded: the outputs are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import attribute, infer_types
from calib.graph_editor import GraphEditor, add_channels
from calib.refine.linear_consumers import Reader, product
from calib.refine.scale_search import Choice

_SUFFIX = "migrated"
LARGEST_MAP = 1 << 20
"""Elements up to which a map is added behind a padded Conv: 4 MB in FP32."""


class Migration:
    """What may be moved in a graph, and the moving of it.

    Args:
        model: float graph; it is copied.
        readers: tensor -> its readers, see `find_readers`.
    """

    def __init__(self, model: onnx.ModelProto, readers: Mapping[str, tuple[Reader, ...]]) -> None:
        self._editor = GraphEditor(model)
        self._readers = readers
        self._types = infer_types(model)

    def producer(self, tensor: str, *, shifted: bool) -> str | None:
        """Name of the node whose constants can take factors (and a shift); None when there is none."""
        index, editor = self._editor.index, self._editor
        read_by = {index.names[i] for i in index.consumers.get(tensor, ())}
        if tensor in editor.seen or read_by != {r.node for r in self._readers[tensor]} or tensor not in index.producers:
            return None
        name = index.names[index.producers[tensor]]
        node = editor.node(name)
        by_channel = bool(self._readers[tensor][0].geometry.kernel)
        if node.op_type == "LayerNormalization":
            last = not by_channel and int(attribute(node, "axis", -1)) == -1
            return name if last and all(editor.is_constant(name, at) for at in (1, 2)) else None
        if node.op_type == "BatchNormalization":
            return name if by_channel and all(editor.is_constant(name, at) for at in (1, 2)) else None
        if node.op_type == "Relu" and by_channel and not shifted:
            return self._conv(node.input[0])
        if node.op_type == "Clip":
            bounded = all(editor.is_constant(name, at) for at in (1, 2))
            return name if by_channel and shifted and bounded and self._conv(node.input[0], mapped=True) else None
        return self._conv(tensor) if by_channel else None

    def clipped(self, tensor: str) -> bool:
        """Whether a Clip makes a tensor: all its channels may reach the same bounds, whatever some images show."""
        node = self._editor.index.producer(tensor)
        return node is not None and node.op_type == "Clip"

    def can_shift(self, tensor: str) -> bool:
        """Whether the correction of a shift has a form: no padding, or a map of a known and moderate size."""
        return not self._readers[tensor][0].geometry.padded or all(
            self._map_shape(r) is not None for r in self._readers[tensor]
        )

    def move(self, tensor: str, choice: Choice) -> str:
        """Carry out a choice; the name of the tensor that is quantized in the end."""
        factors, shift = choice.factors, choice.shift
        producer = self.producer(tensor, shifted=shift != 0)
        if self.clipped(tensor) and np.any(factors != 1):
            producer = None  # one pair of bounds cannot take a factor per channel
        for reader in self._readers[tensor]:
            self._behind(reader, factors, shift)
        if producer is not None:
            self._in_front(producer, factors, shift)
            return tensor
        by_channel = (-1, 1, 1) if self._readers[tensor][0].geometry.kernel else (-1,)
        operators = [("Mul", factors.astype(np.float32).reshape(by_channel))] if np.any(factors != 1) else []
        operators += [("Add", np.full(1, shift, np.float32).reshape(by_channel))] if shift else []
        end = self._editor.put_behind(tensor, operators, _SUFFIX)
        for reader in self._readers[tensor]:
            self._editor.node(reader.node).input[0] = end
        return end

    def finish(self) -> onnx.ModelProto:
        """The changed graph."""
        return self._editor.finish()

    def _conv(self, tensor: str, *, mapped: bool = False) -> str | None:
        """The Conv that makes a tensor that nothing else reads, from constants alone, with no map behind it unless `mapped`."""
        editor, index = self._editor, self._editor.index
        if tensor in editor.seen or tensor not in index.producers or len(index.consumers.get(tensor, ())) != 1:
            return None
        name = index.names[index.producers[tensor]]
        node = editor.node(name)
        if node.op_type != "Conv" or not (mapped or node.output[0] == tensor) or not editor.is_constant(name, 1):
            return None
        return name if not any(node.input[2:]) or editor.is_constant(name, 2) else None

    def _in_front(self, name: str, factors: NDArray[np.float64], shift: float) -> None:
        """Let the constants of a node make its output times the factors, plus the shift."""
        editor = self._editor
        op_type = editor.node(name).op_type
        if op_type == "Clip":
            for at in (1, 2):
                editor.set_constant(name, at, _float32(editor.constant(name, at) + np.float64(shift)), _SUFFIX)
            conv = editor.index.names[editor.index.producers[editor.node(name).input[0]]]
            add_channels(editor, conv, np.full(len(factors), shift, np.float32), _SUFFIX)
            return
        if op_type == "Conv":
            weight = editor.constant(name, 1)
            editor.set_constant(name, 1, _float32(weight * factors.reshape(-1, *[1] * (weight.ndim - 1))), _SUFFIX)
            if editor.is_constant(name, 2):
                editor.set_constant(name, 2, _float32(editor.constant(name, 2) * factors), _SUFFIX)
            if shift:
                add_channels(editor, name, np.full(len(factors), shift, np.float32), _SUFFIX)
            return
        editor.set_constant(name, 1, _float32(editor.constant(name, 1) * factors), _SUFFIX)
        editor.set_constant(name, 2, _float32(editor.constant(name, 2) * factors + shift), _SUFFIX)

    def _behind(self, reader: Reader, factors: NDArray[np.float64], shift: float) -> None:
        """Divide a reader's weight by the factors and correct its output for the shift."""
        weight = self._editor.constant(reader.node, 1)
        matrix = reader.matrix(weight.astype(np.float64))
        channels = reader.geometry.channels(len(factors))
        divided = reader.weight_of(matrix / factors[channels][:, :, None], weight.shape)
        self._editor.set_constant(reader.node, 1, _float32(divided), _SUFFIX)
        if not shift:
            return
        seen = (-shift / factors)[channels]  # (G, K): what a reader adds up too much of, as a patch
        if not reader.geometry.padded:
            add_channels(self._editor, reader.node, _float32(product(seen[None], matrix).reshape(-1)), _SUFFIX)
            return
        self._editor.add_to_output(reader.node, _float32(self._map(reader, matrix, -shift / factors)))

    def _map(self, reader: Reader, matrix: NDArray[np.float64], constant: NDArray[np.float64]) -> NDArray[np.float64]:
        """Output of a padded Conv, (1, C, H, W), on an activation that is `constant` (channels,) everywhere."""
        _, channels, height, width = self._map_shape(reader) or (1, 1, 1, 1)
        shape = self._types[reader.tensor].shape or ()
        image = np.broadcast_to(constant.reshape(1, -1, 1, 1), (1, len(constant), *(int(d or 0) for d in shape[2:])))
        patches = reader.geometry.patches(image, height * width, np.random.default_rng(0)).astype(np.float64)
        return np.asarray(product(patches, matrix).reshape(height, width, channels).transpose(2, 0, 1)[None])

    def _map_shape(self, reader: Reader) -> tuple[int, ...] | None:
        source, made = self._types.get(reader.tensor), self._types.get(self._editor.node(reader.node).output[0])
        if source is None or made is None or source.shape is None or made.shape is None:
            return None
        sides = (*source.shape[1:], *made.shape[1:])
        if any(d is None for d in sides):
            return None
        shape = (1, *(int(d or 0) for d in made.shape[1:]))
        return shape if np.prod(shape) <= LARGEST_MAP else None


def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)
