"""Outputs: the tensors that an option names take their place, and an output whose size depends on the image is refused.

Detection networks end in operators such as NonMaxSuppression, whose results have another size for every image. No engine of
this toolkit is judged on such outputs; what reaches these operators has fixed sizes, and can be made the output.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from calib.errors import GraphError, UsageError
from calib.graph import index_graph, infer_types
from edge.onnx_import.graph_edit import is_operator, replace_items
from edge.onnx_import.imported import Change

SIZED_BY_VALUES = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
"""Operators whose result has a size that depends on the values that they read."""
_LISTED = 6


def take_outputs(model: onnx.ModelProto, names: Sequence[str], path: Path) -> list[Change]:
    """Make these tensors the outputs of the graph, in this order, in place; without names nothing changes.

    Raises UsageError for a name that no tensor of the main graph has.
    """
    if not names:
        return []
    graph = model.graph
    made = [name for node in graph.node for name in node.output if name]
    unknown = [name for name in names if name not in made]
    if unknown:
        raise UsageError(
            "--outputs names a tensor that the graph does not compute",
            where=path,
            found=unknown[0][:80],
            allowed=_alike(graph, unknown[0], made),
        )
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    types = infer_types(model) if any(name not in known for name in names) else {}
    outputs = []
    for name in names:
        kind = types[name].dtype if name in types else TensorProto.UNDEFINED
        inferred = helper.make_tensor_value_info(name, kind, None) if kind else onnx.ValueInfoProto(name=name)
        outputs.append(known.get(name, inferred))
    changes = [Change("output", name, "made an output") for name in names if name not in {v.name for v in graph.output}]
    replace_items(graph.output, outputs)
    return changes


def refuse_sized_by_values(model: onnx.ModelProto, path: Path) -> None:
    """Raise GraphError, naming the first node at fault, for an output of the main graph whose size depends on the image."""
    index = index_graph(model)
    makers = [node for node in model.graph.node if is_operator(node, *SIZED_BY_VALUES)]
    if not makers:
        return
    types = infer_types(model)
    tainted = {name for node in makers for name in node.output}
    frontier: dict[str, None] = {}
    for at, node in enumerate(model.graph.node):
        if node in makers or tainted & index.reads[at]:
            tainted.update(node.output)
            before = sorted(index.reads[at] - tainted - index.constant_like - {*index.inputs})
            frontier |= dict.fromkeys(name for name in before if name in types and types[name].dtype == TensorProto.FLOAT)
    sized = [
        v.name for v in model.graph.output if v.name in tainted and _varies(types[v.name].shape if v.name in types else None)
    ]
    if sized:
        names = ",".join(list(frontier)[:_LISTED]) or "NAME,..."
        raise GraphError(
            "the size of an output depends on what the image shows",
            where=f"{path}, node {makers[0].name} ({makers[0].op_type})",
            found=f"output {sized[0]}",
            allowed="outputs of fixed sizes, a free batch apart",
            next_command=f"end the graph before it, --task tensors --outputs {names}, and select the answers outside",
        )


def _varies(shape: tuple[int | None, ...] | None) -> bool:
    return shape is None or None in shape


def _alike(graph: onnx.GraphProto, name: str, made: list[str]) -> str:
    """The outputs of a node of this name, else tensors with similar names, else the outputs of the graph."""
    of_node = [output for node in graph.node if node.name == name for output in node.output if output]
    names = of_node or get_close_matches(name, made, _LISTED) or [value.name for value in graph.output]
    return ", ".join(names)[:400]
