"""SmoothQuant: apply factors and shifts of activations to a float graph, which computes the same as before.

A reader of x gets a x + b instead, with a > 0 and b per channel. Then

    y = x W = (a x + b) (W / a) - (b / a) W

    producer   LayerNormalization, BatchNormalization: scale a, bias a * bias + b. Conv, also through a Relu if b = 0: its
               output channels (cross-layer equalization, Nagel et al., arXiv 1906.04721). A Clip after a Conv: b into the
               Conv's bias and both bounds. These cost nothing at run time. Otherwise a multiplication and an addition per
               element are inserted, which TensorRT fuses with the preceding operator.
    readers    W / a, and -(b / a) W as a bias. A padded Conv reads zeros beyond the border where it would have to read b: there
               the correction is a constant map, (1, C, H, W), added to its output.

With powers of two for a and no b, nothing is rounded: the outputs are the same to the last bit.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import attribute, infer_types
from calib.graph_editor import GraphEditor, add_channels
from calib.refine.linear_consumers import Reader, product
from calib.refine.scale_search import ScaleChoice

_SUFFIX = "migrated"
LARGEST_MAP = 1 << 20
"""Elements up to which a map is added after a padded Conv: 4 MB in FP32."""


class Migration:
    """Moves factors and shifts of tensors into the layers around them, in a copy of a float graph."""

    def __init__(self, model: onnx.ModelProto, readers: Mapping[str, tuple[Reader, ...]]) -> None:
        self._editor = GraphEditor(model)
        self._readers = readers
        self._types = infer_types(model)

    def producer(self, tensor: str, *, shifted: bool) -> str | None:
        """Name of the preceding node whose constants can absorb factors (and a shift); None when there is none."""
        index, editor = self._editor.index, self._editor
        read_by = {index.names[i] for i in index.consumers.get(tensor, ())}
        others_read = tensor in editor.read_elsewhere or read_by != {r.node for r in self._readers[tensor]}
        if others_read or tensor not in index.producers:
            return None
        name = index.names[index.producers[tensor]]
        node = editor.node(name)
        by_channel = bool(self._readers[tensor][0].geometry.kernel)
        constants = all(editor.is_constant(name, at) for at in (1, 2))
        if node.op_type == "LayerNormalization":
            return name if constants and not by_channel and int(attribute(node, "axis", -1)) == -1 else None
        if not by_channel:
            return None
        if node.op_type == "BatchNormalization":
            return name if constants else None
        if node.op_type == "Clip":
            return name if constants and shifted and self._producing_conv(node.input[0], mapped=True) else None
        return self._producing_conv(node.input[0] if node.op_type == "Relu" and not shifted else tensor)

    def clipped(self, tensor: str) -> bool:
        """Whether a tensor is the output of a Clip: any channel may reach the same bounds on some image."""
        node = self._editor.index.producer(tensor)
        return node is not None and node.op_type == "Clip"

    def can_shift(self, tensor: str) -> bool:
        """Whether a shift can be corrected in the readers: no padding, or a map of known and moderate size."""
        readers = self._readers[tensor]
        return not readers[0].geometry.padded or all(self._map_shape(r) is not None for r in readers)

    def move(self, tensor: str, choice: ScaleChoice) -> str:
        """Apply a choice; return the name of the tensor to be quantized."""
        factors, shift = choice.factors, choice.shift
        producer = self.producer(tensor, shifted=shift != 0)
        if self.clipped(tensor) and np.any(factors != 1):
            producer = None  # one pair of bounds cannot take a factor per channel
        for reader in self._readers[tensor]:
            self._change_reader(reader, factors, shift)
        if producer is not None:
            self._change_producer(producer, factors, shift)
            return tensor
        by_channel = (-1, 1, 1) if self._readers[tensor][0].geometry.kernel else (-1,)
        operators = [("Mul", factors.astype(np.float32).reshape(by_channel))] if np.any(factors != 1) else []
        operators += [("Add", np.full(1, shift, np.float32).reshape(by_channel))] if shift else []
        moved = self._editor.append_operators(tensor, operators, _SUFFIX)
        for reader in self._readers[tensor]:
            self._editor.node(reader.node).input[0] = moved
        return moved

    def finish(self) -> onnx.ModelProto:
        """The changed graph."""
        return self._editor.finish()

    def _producing_conv(self, tensor: str, *, mapped: bool = False) -> str | None:
        """The Conv with constant weights whose output has a single reader; without a map added to it unless `mapped`."""
        editor, index = self._editor, self._editor.index
        if tensor in editor.read_elsewhere or tensor not in index.producers or len(index.consumers.get(tensor, ())) != 1:
            return None
        name = index.names[index.producers[tensor]]
        node = editor.node(name)
        if node.op_type != "Conv" or not (mapped or node.output[0] == tensor) or not editor.is_constant(name, 1):
            return None
        return name if not any(node.input[2:]) or editor.is_constant(name, 2) else None

    def _change_producer(self, name: str, factors: NDArray[np.float64], shift: float) -> None:
        """Scale the output of a node by the factors and add the shift, in its constants."""
        editor, op_type = self._editor, self._editor.node(name).op_type
        if op_type == "Clip":
            for at in (1, 2):
                self._set(name, at, editor.constant(name, at) + np.float64(shift))
            name = editor.index.names[editor.index.producers[editor.node(name).input[0]]]
        elif op_type == "Conv":
            weight = editor.constant(name, 1)
            self._set(name, 1, weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))
            if editor.is_constant(name, 2):
                self._set(name, 2, editor.constant(name, 2) * factors)
        else:
            self._set(name, 1, editor.constant(name, 1) * factors)
            self._set(name, 2, editor.constant(name, 2) * factors + shift)
            return
        if shift:  # into the Conv, for a Clip the one before it
            add_channels(editor, name, np.full(len(factors), shift, np.float32), _SUFFIX)

    def _set(self, name: str, at: int, values: NDArray[np.float64]) -> None:
        self._editor.set_constant(name, at, values.astype(np.float32), _SUFFIX)

    def _change_reader(self, reader: Reader, factors: NDArray[np.float64], shift: float) -> None:
        """Divide a reader's weight by the factors and correct its output for the shift."""
        weight = self._editor.constant(reader.node, 1)
        matrix = reader.matrix(weight.astype(np.float64))
        channels = reader.geometry.channels(len(factors))
        self._set(reader.node, 1, reader.weight_of(matrix / factors[channels][:, :, None], weight.shape))
        if not shift:
            return
        offset = -shift / factors  # the surplus in every channel of the input
        if reader.geometry.padded:
            self._editor.add_to_output(reader.node, self._output_map(reader, matrix, offset).astype(np.float32))
        else:
            correction = product(offset[channels][None], matrix).reshape(-1)
            add_channels(self._editor, reader.node, correction.astype(np.float32), _SUFFIX)

    def _output_map(self, reader: Reader, matrix: NDArray[np.float64], constant: NDArray[np.float64]) -> NDArray[np.float64]:
        """Output of a padded Conv, (1, C, H, W), on an activation that is `constant` (channels,) everywhere."""
        _, channels, height, width = self._map_shape(reader) or (1, 1, 1, 1)
        shape = self._types[reader.tensor].shape or ()
        image = np.broadcast_to(constant.reshape(1, -1, 1, 1), (1, len(constant), *(int(d or 0) for d in shape[2:])))
        patches = reader.geometry.patches(image, height * width, np.random.default_rng(0)).astype(np.float64)
        return np.asarray(product(patches, matrix).reshape(height, width, channels).transpose(2, 0, 1)[None])

    def _map_shape(self, reader: Reader) -> tuple[int, ...] | None:
        types = [self._types.get(name) for name in (reader.tensor, self._editor.node(reader.node).output[0])]
        shapes = [known.shape[1:] for known in types if known is not None and known.shape is not None]
        if len(shapes) < 2 or None in shapes[0] + shapes[1]:
            return None
        shape = (1, *(int(d or 0) for d in shapes[1]))
        return shape if np.prod(shape) <= LARGEST_MAP else None
