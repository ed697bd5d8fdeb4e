"""One node as the rules see it: its attributes, what is known of its inputs, the shapes of its outputs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from calib.graph import attribute
from edge.stability.bounds.value import Shape, Value


@dataclass(frozen=True)
class Operator:
    """A node and its surroundings.

    Attributes:
        node: of the graph.
        inputs: what is known of each input; None for one that is left out or is not of floats.
        constants: values of inputs that the graph holds, integers included, by position.
        shapes: of the outputs; None where inference does not tell.
        partial_sums: filled by the rules: (tensor, tensor) of a product -> bound on the sum of |a b|.
    """

    node: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    constants: dict[int, npt.NDArray[Any]]
    shapes: tuple[Shape | None, ...]
    partial_sums: dict[tuple[str, str], float]

    @property
    def op_type(self) -> str:
        """The operator."""
        return self.node.op_type

    @property
    def shape(self) -> Shape | None:
        """Of the first output."""
        return self.shapes[0]

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, or its default."""
        return attribute(self.node, name, default)

    def constant(self, place: int) -> npt.NDArray[Any] | None:
        """The values of an input; None where the graph does not hold them."""
        return self.constants.get(place)

    def has_input(self, place: int) -> bool:
        """Whether an optional input is there."""
        return place < len(self.node.input) and bool(self.node.input[place])

    def value(self, place: int) -> Value | None:
        """What is known of an input, if it is there."""
        return self.inputs[place] if place < len(self.inputs) else None

    def axes(self, place: int | None, rank: int) -> tuple[int, ...] | None:
        """Axes from an attribute or from the input at `place`, not negative, ascending; None where they are not known."""
        given = self.attribute("axes", None)
        if given is None and place is not None and self.has_input(place):
            values = self.constant(place)
            if values is None:
                return None
            given = np.asarray(values).reshape(-1).tolist()
        if given is None or not len(given):
            return () if self.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
        return tuple(sorted(int(axis) % rank for axis in given))

    def record_partial_sum(self, bound: float) -> None:
        """A bound on the sum of |a b| of this product."""
        self.partial_sums[self.node.input[0], self.node.input[1]] = bound
