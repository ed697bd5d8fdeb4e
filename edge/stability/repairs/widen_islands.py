"""Nodes that join an FP32 island though 16 bits hold them: for its accuracy, or because that takes fewer Casts.

logits of LARGE_LOGITS and more     the layers that compute queries and keys, up to the product: an exponential turns the
                                    absolute error of its argument, here the rounding of both, into a relative one
a node beside an island             joins where that saves a Cast; layers with weights do not, as FP32 makes them slow
"""

from collections.abc import Collection, Iterator, Set

import onnx

from calib.graph import infer_types
from calib.macs import MAC_OPS
from edge.stability.finders.site_graph import VIEWS
from edge.stability.network_cases import NetworkFacts

LARGE_LOGITS = 64.0
"""From here on FP16 rounds by up to 1/32 and more, which moves exponentials by 3 %: less than 30 dB are left of them."""
_PASSING = (*VIEWS, "Slice", "Split", "Gather", "Mul", "Div", "Add")


def widen_islands(facts: NetworkFacts, nodes: Collection[str], kept: Collection[str]) -> frozenset[str]:
    """`nodes` and what joins them; `kept` are those of `nodes` whose neighbours do not."""
    types = infer_types(facts.model)
    floats = {name for name, known in types.items() if known.dtype == onnx.TensorProto.FLOAT} - facts.index.constant_like
    wide = {*nodes, *_layers_before_logits(facts, nodes)}
    while (joining := next(_saving(facts, wide, wide - set(kept), floats), None)) is not None:
        wide.add(joining)
    return frozenset(wide)


def _layers_before_logits(facts: NetworkFacts, nodes: Collection[str]) -> Iterator[str]:
    index = facts.index
    largest = {probe.tensors[0]: seen.maximum for probe, seen in facts.observed.items() if probe.stored}
    for site in facts.sites:
        if site.kind != "softmax" or site.name not in nodes or largest.get(site.reads, 0.0) < LARGE_LOGITS:
            continue
        for name in site.nodes:
            if index.nodes[name].op_type == "MatMul" and name in nodes:
                for factor in index.nodes[name].input:
                    yield from _back_to_layer(facts, factor)


def _back_to_layer(facts: NetworkFacts, tensor: str) -> list[str]:
    """Names of the nodes from a tensor back to the layer that computes it; none where something else does."""
    index, names = facts.index, list[str]()
    while (at := index.producers.get(tensor)) is not None:
        names.append(index.names[at])
        node = index.nodes[names[-1]]
        if node.op_type in MAC_OPS:
            return names
        sources = [str(name) for name in node.input if name and name not in index.constant_like]
        if node.op_type not in _PASSING or len(sources) != 1:
            break
        tensor = sources[0]
    return []


def _saving(facts: NetworkFacts, nodes: Collection[str], around: Collection[str], floats: Set[str]) -> Iterator[str]:
    """Nodes beside those of `around`, in graph order, each of which saves a Cast."""
    index = facts.index
    for at, (name, node) in enumerate(index.nodes.items()):
        tensors = floats & {*index.reads[at], *node.output}
        weighted = node.op_type in MAC_OPS and not tensors >= set(node.input[:2])
        if name in nodes or weighted or not any(_touches(facts, tensor, around) for tensor in tensors):
            continue
        if _casts(facts, tensors, {*nodes, name}) < _casts(facts, tensors, nodes):
            yield name


def _touches(facts: NetworkFacts, tensor: str, nodes: Collection[str]) -> bool:
    index = facts.index
    ends = [*index.consumers.get(tensor, ()), *([index.producers[tensor]] if tensor in index.producers else [])]
    return any(index.names[at] in nodes for at in ends)


def _casts(facts: NetworkFacts, tensors: Collection[str], nodes: Collection[str]) -> int:
    """How many of the tensors some node reads in another type than they are computed in; inputs and outputs are FP32."""
    index, count = facts.index, 0
    outputs = {value.name for value in facts.model.graph.output}
    for tensor in tensors:
        inside = tensor not in index.producers or index.names[index.producers[tensor]] in nodes
        readers = [index.names[at] in nodes for at in index.consumers.get(tensor, ())] + [True] * (tensor in outputs)
        count += any(reads != inside for reads in readers)
    return count
