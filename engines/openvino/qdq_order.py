r"""Quantize a tensor before it is transposed or reshaped, not after.

    x -> Transpose, Reshape -> Q -> DQ -> product      =>      x -> Q -> DQ -> Transpose, Reshape -> product

Q and DQ with one scale act on every element alone, a Transpose or Reshape only moves elements: they commute, so that every
value stays the same to the bit. A runtime that fuses Q into the operator before it (a norm, a product) then moves one byte per
element instead of four, and drops a Transpose that only undoes the layout of the next convolution.
"""

from collections.abc import Mapping
from copy import deepcopy

import onnx

_MOVES = frozenset(("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))


def quantize_early(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a Q/DQ graph with every per-tensor Q/DQ pair moved to the front of the Transposes and Reshapes before it.

    Only chains of which nobody else reads a part are changed. Nodes keep their names. A graph with control flow, whose inner
    graphs may read any tensor, is returned as it is.
    """
    early = deepcopy(model)
    graph = early.graph
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return early
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    scalars = {tensor.name for tensor in graph.initializer if not tensor.dims}
    results = {output.name for output in graph.output}
    pairs_before: dict[str, list[onnx.NodeProto]] = {}
    moved: set[str] = set()
    for quantize in graph.node:
        dequantize = _sole_reader(quantize.output[0], readers, results) if quantize.op_type == "QuantizeLinear" else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.output[0] in results:
            continue
        if not scalars.issuperset((*quantize.input[1:], *dequantize.input[1:])):
            continue
        chain = _moves_before(quantize, producers, readers, results)
        if chain:
            _swap(quantize, dequantize, chain, readers)
            pairs_before[chain[-1].output[0]] = [quantize, dequantize]
            moved |= {quantize.output[0], dequantize.output[0]}
    ordered = []
    for node in graph.node:
        if node.output[0] not in moved:
            ordered += [*pairs_before.get(node.output[0], ()), node]
    ordered = [deepcopy(node) for node in ordered]  # assigning to the field clears the nodes that it holds
    del graph.node[:]
    graph.node.extend(ordered)
    return early


def _sole_reader(tensor: str, readers: Mapping[str, list[onnx.NodeProto]], results: set[str]) -> onnx.NodeProto | None:
    """The only node that reads a tensor; None for several or none, and for an output of the graph."""
    nodes = readers.get(tensor, [])
    return nodes[0] if len(nodes) == 1 and tensor not in results else None


def _moves_before(
    quantize: onnx.NodeProto,
    producers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
    results: set[str],
) -> list[onnx.NodeProto]:
    """The Transposes and Reshapes between `quantize` and what another node computes, from the last to the first."""
    chain: list[onnx.NodeProto] = []
    tensor = quantize.input[0]
    while (mover := producers.get(tensor)) is not None and mover.op_type in _MOVES:
        if _sole_reader(tensor, readers, results) is None:
            break
        chain.append(mover)
        tensor = mover.input[0]
    return chain if tensor in producers else []


def _swap(
    quantize: onnx.NodeProto,
    dequantize: onnx.NodeProto,
    chain: list[onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
) -> None:
    """Connect the source of the chain to the pair, the pair to the chain, and the chain to what read the pair."""
    first, last = chain[-1], chain[0]
    restored = dequantize.output[0]
    quantize.input[0] = first.input[0]
    first.input[0] = restored
    for reader in readers[restored]:
        reader.input[:] = [last.output[0] if tensor == restored else tensor for tensor in reader.input]
