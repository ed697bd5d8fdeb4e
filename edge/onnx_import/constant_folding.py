"""Replace by constants what is computed from constants and from shapes.

What depends on the input's shape alone is computed by running the graph at batch 1 and 2 (at the batch size of a graph whose
batch is fixed). A tensor with the same value in every run becomes a constant. Of a Reshape whose target varies with the batch,
the measured sizes of its output become the target: 0 (as in the input) where both vary together, -1 for one other size.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import tensors_read
from edge.onnx_import.graph_edit import all_nodes, is_operator, prune, set_initializers, subgraphs
from edge.onnx_import.imported import Change, ImageInput
from edge.onnx_import.measured_run import MeasuredRun, measure

LARGEST_GROWTH = 1 << 20
"""Elements by which a new constant may exceed the largest one of the file: 4 MiB in FP32."""
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout")
_SHAPED_BY_DATA = ("NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop", "Scan", "StringSplit")
_SHAPED_BY_SEQUENCE = ("SplitToSequence", "SequenceAt", "ConcatFromSequence", "SequenceMap", "OptionalGetElement")
_SHAPE_INPUTS = {
    **dict.fromkeys(
        ("Reshape", "Expand", "Tile", "Pad", "TopK", "OneHot", "Split", "Squeeze", "Unsqueeze", "CenterCropPad"), (1,)
    ),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"), (1,)),
    **dict.fromkeys(("Slice",), (1, 2, 3, 4)),
    **dict.fromkeys(("Range",), (0, 1, 2)),
    **dict.fromkeys(("Resize",), (2, 3)),
    **dict.fromkeys(("ConstantOfShape", "EyeLike"), (0,)),
}
"""Operator -> the inputs whose values decide the shape of its output."""


def measure_fixed(
    model: onnx.ModelProto, image: ImageInput, batches: Sequence[int], where: object, *, outputs: bool = False
) -> list[MeasuredRun]:
    """Runs that hold what `fold_constants` needs, and the outputs if asked for; none if there is nothing to fold.

    Raises GraphError when ONNX Runtime cannot run the graph.
    """
    fixed = shape_only(model.graph)
    computed = [name for node in model.graph.node for name in node.output if name in fixed]
    targets = _varying_candidates(model.graph, fixed)
    shapes = sorted({name for node in targets for name in (node.input[0], node.output[0])})
    if not computed and not outputs:
        return []
    return measure(model, image, batches, values=computed, shapes=shapes, outputs=outputs, where=where)


def fold_constants(model: onnx.ModelProto, runs: Sequence[MeasuredRun]) -> list[Change]:
    """Fold what was measured into constants, in place; unread nodes and initializers go."""
    if not runs:
        prune(model)
        return []
    graph = model.graph
    targets = [node for node in _varying_candidates(graph, shape_only(graph)) if node.output[0] in runs[0].shapes]
    results = {value.name for value in graph.output}
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    allowed = LARGEST_GROWTH + max(sizes.values(), default=0)
    values = {}
    for name in runs[0].values:
        first, *others = (run.values[name] for run in runs)
        if name in results or not isinstance(first, np.ndarray) or first.size > allowed:  # a sequence of tensors is a list
            continue
        if all(np.array_equal(first, other, equal_nan=first.dtype.kind == "f") for other in others):
            values[name] = first
    for node in targets:
        target = _reshape_target(node, runs) if node.input[1] not in values else None
        if target is not None:
            name = f"{node.output[0]}/target"
            node.input[1] = name
            values[name] = target
    return _apply(model, values)


def _apply(model: onnx.ModelProto, values: dict[str, NDArray[np.generic]]) -> list[Change]:
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    remaining = [node for node in graph.node if not node.output or not all(name in values for name in node.output if name)]
    read = tensors_read(remaining, graph.output)
    changes = []
    for name, value in values.items():
        maker = makers.get(name)
        if name in read and not (maker is not None and is_operator(maker, "Constant")):
            changes.append(
                Change("folded", (maker.name if maker else "") or name, f"{value.dtype} {list(value.shape)} into {name}")
            )
    set_initializers(graph, {name: value for name, value in values.items() if name in read})
    prune(model)
    return changes


def shape_only(graph: onnx.GraphProto) -> set[str]:
    """Names of all tensors whose values depend on constants and on the shape of the input, not on its values."""
    fixed = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    shaped_by_data: set[str] = set()
    for node in graph.node:
        read = (tensors_read([node]) if subgraphs(node) else set(node.input)) - {""}
        custom = node.domain not in ("", "ai.onnx")
        if _is_random(node):
            continue
        if not custom and read - _inner(node) <= fixed:
            fixed.update(name for name in node.output if name)
            continue
        if is_operator(node, "Shape", "Size") and not read & shaped_by_data:
            fixed.update(node.output)
            continue
        deciding = {node.input[i] for i in _SHAPE_INPUTS.get(node.op_type, ()) if i < len(node.input)} - {""}
        by_data = custom or is_operator(node, *_SHAPED_BY_DATA, *_SHAPED_BY_SEQUENCE)
        if by_data or read & shaped_by_data or not deciding <= fixed:
            shaped_by_data.update(name for name in node.output if name)
    return fixed


def _is_random(node: onnx.NodeProto) -> bool:
    return is_operator(node, *_RANDOM) or any(_is_random(inner) for graph in subgraphs(node) for inner in all_nodes(graph))


def _inner(node: onnx.NodeProto) -> set[str]:
    """Tensors that the subgraphs of a node define themselves."""
    names: set[str] = set()
    for graph in subgraphs(node):
        names |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        names |= {name for inner in all_nodes(graph) for name in inner.output}
        for inner in graph.node:
            names |= _inner(inner)
    return names


def _varying_candidates(graph: onnx.GraphProto, fixed: set[str]) -> list[onnx.NodeProto]:
    """Reshapes of tensors that depend on the image, to targets that are computed."""
    stored = {tensor.name for tensor in graph.initializer}
    return [
        node
        for node in graph.node
        if is_operator(node, "Reshape") and node.input[0] not in fixed and node.input[1] in fixed - stored
        and not any(item.name == "allowzero" and item.i for item in node.attribute)
    ]  # fmt: skip


def _reshape_target(node: onnx.NodeProto, runs: Sequence[MeasuredRun]) -> NDArray[np.int64] | None:
    """The target that gives the measured output at every batch size; None where there is none."""
    before, after = ([run.shapes[name] for run in runs] for name in (node.input[0], node.output[0]))
    target, inferred = [], 0
    for axis, size in enumerate(after[0]):
        if all(shape[axis] == size for shape in after) and size > 0:
            target.append(size)
        elif axis < len(before[0]) and all(a[axis] == b[axis] for a, b in zip(after, before, strict=True)):
            target.append(0)
        else:
            target.append(-1)
            inferred += 1
    return np.asarray(target, np.int64) if inferred <= 1 else None
