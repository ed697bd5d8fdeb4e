"""Facts of tensors that are rearranged: the operator applied to the arrays of facts, in which an axis of size 1 stays one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.stability.bounds.operator import Operator
from edge.stability.bounds.value import Length, Shape, Value, bounded, length_of, unbounded

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
LARGEST_MOVE = 1 << 22
"""Numbers that an array of facts may need on its way, where axes merge of which it knows one alone."""


@dataclass(frozen=True)
class Move:
    """How arrays of facts, and lengths, follow a tensor.

    Attributes:
        shape: of the tensor afterwards.
        array: an array of facts to its new form; None where it would be too large.
        length: a length to its new form; None where it does not hold any more.
    """

    shape: Shape
    array: Callable[[Array], Array | None]
    length: Callable[[Length], Length | None]

    def value(self, value: Value) -> Value:
        """The facts of the rearranged tensor."""
        low, high = self.array(value.low), self.array(value.high)
        if low is None or high is None:
            ones = (1,) * len(self.shape)
            low, high = np.full(ones, value.low.min()), np.full(ones, value.high.max())
        lengths = tuple(moved for length in value.lengths if (moved := self.length(length)) is not None)
        return bounded(self.shape, low, high, lengths, value.ball.mapped(self.array) if value.ball else None)


def rearranged(operator: Operator) -> Value:
    """Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Identity, Expand, Slice, Gather: one output."""
    value, shape = operator.inputs[0], operator.shape
    if value is None or value.shape is None or shape is None or 0 in value.shape or 0 in shape:
        return unbounded(shape)
    op = operator.op_type
    if op == "Transpose":
        order = [int(axis) for axis in operator.attribute("perm", list(range(value.rank))[::-1])]
        return transposing(value.shape, order).value(value)
    if op in ("Slice", "Gather"):
        return _selected(operator, value)
    if op == "Expand":
        return _expanded(value, shape)
    return reshaping(value.shape, shape).value(value) if np.prod(value.shape) == np.prod(shape) else unbounded(shape)


def transposing(old: Shape, order: Sequence[int]) -> Move:
    """The move of a Transpose."""

    def length(fact: Length) -> Length:
        axes = tuple(sorted(list(order).index(axis) for axis in fact.axes))
        return Length(axes, fact.order, fact.bound.transpose(order))

    return Move(tuple(old[axis] for axis in order), lambda array: array.transpose(order), length)


def reshaping(old: Shape, new: Shape) -> Move:
    """The move of a Reshape: axes are followed where groups of them have equal products."""
    groups = _groups(old, new)

    def array(facts: Array) -> Array | None:
        sides: list[int] = []
        target: list[int] = []
        for before, after in groups:
            known = any(facts.shape[axis] > 1 for axis in before)
            sides += [old[axis] if known else 1 for axis in before]
            target += [new[axis] if known else 1 for axis in after]
        if np.prod(sides) > LARGEST_MOVE and tuple(sides) != facts.shape:
            return None
        return np.broadcast_to(facts, sides).reshape(target)

    def length(fact: Length) -> Length | None:
        bound, axes = fact.bound, []
        for before, after in groups:
            summed = {axis for axis in before if old[axis] > 1}
            if not summed & set(fact.axes):
                continue
            axes += after
            for axis in sorted(summed - set(fact.axes)):  # the vectors of one group lie in one longer vector
                count = old[axis] if bound.shape[axis] == 1 else 1
                bound = ((bound**fact.order).sum(axis=axis, keepdims=True) * count) ** (1 / fact.order)
        moved = array(bound)
        return None if moved is None or not axes else Length(tuple(axes), fact.order, moved)

    return Move(new, array, length)


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Axes before and after that hold the same numbers: consecutive, of equal products, as few as possible."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        before, after = [i], [j]
        products = [old[i], new[j]]
        i, j = i + 1, j + 1
        while products[0] != products[1]:
            if products[0] < products[1]:
                before.append(i)
                products[0] *= old[i]
                i += 1
            else:
                after.append(j)
                products[1] *= new[j]
                j += 1
        groups.append((before, after))
    rest = (list(range(i, len(old))), list(range(j, len(new))))  # of size 1
    return [*groups, rest]


def taking(old: Shape, axis: int, indices: Indices) -> Move:
    """The move of a selection of places along one axis."""
    unique = np.unique(indices).size == indices.size

    def array(facts: Array) -> Array:
        return facts if facts.shape[axis] == 1 else facts.take(indices, axis=axis)

    def length(fact: Length) -> Length | None:
        return None if axis in fact.axes and not unique else replace(fact, bound=array(fact.bound))

    return Move((*old[:axis], indices.size, *old[axis + 1 :]), array, length)


def _selected(operator: Operator, value: Value) -> Value:
    """Slice and Gather; along an axis of unknown indices every place may stand for every other."""
    shape = operator.shape
    assert value.shape is not None
    assert shape is not None
    if operator.op_type == "Gather":
        axis = int(operator.attribute("axis", 0)) % value.rank
        chosen = {
            axis: None if (given := operator.constant(1)) is None else given.reshape(-1).astype(np.int64) % value.shape[axis]
        }
    else:
        chosen = _slices(operator, value.shape)
    known = all(indices is not None for indices in chosen.values())
    moved = value if known else value.plain()
    for axis, indices in chosen.items():
        assert moved.shape is not None
        moved = mixed(moved, axis) if indices is None else taking(moved.shape, axis, indices).value(moved)
    if known and moved.shape is not None and np.prod(moved.shape) == np.prod(shape):
        return reshaping(moved.shape, shape).value(moved)
    return bounded(shape, moved.low.min(), moved.high.max())


def _slices(operator: Operator, shape: Shape) -> dict[int, Indices | None]:
    given = [operator.constant(place) for place in (1, 2, 3, 4)]
    starts, ends = given[:2]
    unknown = any(values is None and operator.has_input(place + 1) for place, values in enumerate(given))
    if unknown or starts is None or ends is None:
        return dict.fromkeys(range(len(shape)))
    axes = np.arange(starts.size) if given[2] is None else given[2].reshape(-1)
    steps = np.ones(starts.size, np.int64) if given[3] is None else given[3].reshape(-1)
    chosen: dict[int, Indices | None] = {}
    for start, end, axis, step in zip(starts.reshape(-1), ends.reshape(-1), axes, steps, strict=True):
        place, stop = int(axis) % len(shape), int(end)
        side = shape[place]
        if step < 0 and stop < -side:
            chosen[place] = np.arange(side)[int(start) :: int(step)]
        else:
            chosen[place] = np.arange(side)[int(start) : stop : int(step)]
    return chosen


def mixed(value: Value, *axes: int) -> Value:
    """The value where any place along some axes may stand for any other; lengths over other axes stay."""
    low, high = value.low.min(axis=axes, keepdims=True), value.high.max(axis=axes, keepdims=True)
    lengths = tuple(
        replace(fact, bound=fact.bound.max(axis=axes, keepdims=True))
        for fact in value.lengths
        if not set(axes) & set(fact.axes)
    )
    return bounded(value.shape, low, high, lengths)


def _expanded(value: Value, shape: Shape) -> Value:
    assert value.shape is not None
    added = len(shape) - value.rank
    if added < 0:
        return unbounded(shape)
    moved = reshaping(value.shape, (1,) * added + value.shape).value(value)
    grown = {axis for axis, side in enumerate(moved.shape or ()) if side != shape[axis]}
    lengths = tuple(fact for fact in moved.lengths if not grown & set(fact.axes))
    return bounded(shape, moved.low, moved.high, lengths, moved.ball)


def split(operator: Operator) -> list[Value]:
    """Split: each output a selection."""
    value = operator.inputs[0]
    if value is None or value.shape is None or any(shape is None for shape in operator.shapes):
        return [unbounded(shape) for shape in operator.shapes]
    axis = int(operator.attribute("axis", 0)) % value.rank
    start, parts = 0, []
    for shape in operator.shapes:
        assert shape is not None
        parts.append(taking(value.shape, axis, np.arange(start, start + shape[axis])).value(value))
        start += shape[axis]
    return parts


def concat(operator: Operator) -> Value:
    """Concat: place by place where that is small, otherwise the hull of all."""
    shape, values = operator.shape, operator.inputs
    known = [value for value in values if value is not None and value.shape is not None]
    if shape is None or len(known) != len(values):
        return unbounded(shape)
    axis = int(operator.attribute("axis", 0)) % len(shape)

    def joined(arrays: list[Array], reduce: Callable[..., Any]) -> Array:
        sides = [np.broadcast_shapes(*((*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in arrays))] * len(arrays)
        if np.prod(sides[0]) * shape[axis] > LARGEST_MOVE:
            return np.asarray(reduce([reduce(a, axis=axis, keepdims=True) + np.zeros(sides[0]) for a in arrays], axis=0))
        full = [
            (*side[:axis], value.shape[axis], *side[axis + 1 :])
            for side, value in zip(sides, known, strict=True)
            if value.shape
        ]
        return np.concatenate([np.broadcast_to(a, side) for a, side in zip(arrays, full, strict=True)], axis=axis)

    lengths = tuple(
        Length(fact.axes, fact.order, joined([length_of(value, fact.axes, fact.order) for value in known], np.max))
        for fact in known[0].lengths
        if axis not in fact.axes
    )
    low, high = joined([value.low for value in known], np.min), joined([value.high for value in known], np.max)
    return bounded(shape, low, high, lengths)


def any_place(operator: Operator) -> Value:
    """Tile, DepthToSpace, TopK ...: every place may hold any number of the first input."""
    known = [value for value in operator.inputs[:1] if value is not None]
    if not known:
        return unbounded(operator.shape)
    return bounded(operator.shape, min(value.low.min() for value in known), max(value.high.max() for value in known))


def padded(operator: Operator) -> Value:
    """Pad: the hull with the constant; what is reflected or repeated is there already."""
    value, shape = operator.inputs[0], operator.shape
    if value is None or value.shape is None or shape is None or len(shape) != value.rank:
        return unbounded(shape)
    grown = tuple(axis for axis, side in enumerate(shape) if side != value.shape[axis])
    whole = mixed(value, *grown) if grown else value
    if operator.attribute("mode", "constant") != "constant":
        return bounded(shape, whole.low, whole.high)
    filler = operator.constant(2) if operator.has_input(2) else np.zeros(1)
    if filler is None:
        return unbounded(shape)
    return bounded(shape, np.minimum(whole.low, filler.min()), np.maximum(whole.high, filler.max()))
