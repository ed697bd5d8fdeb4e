"""Attribution of layers other than Conv, Gemm and MatMul. Oracle: the layer whose weights were changed."""

import numpy as np
import pytest
from attribution_graphs import FILE, edited
from import_graphs import GraphWriter, branch
from onnx import helper

from edge.attribution.attribute import attribute_graphs
from edge.attribution.build_graphs import BuildGraphs, LoadedGraph

IMAGES = np.random.default_rng(3).standard_normal((12, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    """Conv -> ConvTranspose -> Einsum -> LSTM, whose last state alone is read -> a product in a branch; weights by layer."""
    g, weights = GraphWriter(), {}

    def weight(layer, *shape):
        weights[layer] = g.random(*shape)
        return weights[layer]

    planes = g.add("Relu", g.conv("x"))  # (n, 8, 4, 4)
    up = g.add("ConvTranspose", planes, weight("ConvTranspose", 8, 6, 2, 2), strides=[2, 2])  # (n, 6, 8, 8)
    steps = g.add("Reshape", g.add("Tanh", up), g.ints(0, 6, 64))
    mixed = g.add("Einsum", steps, weight("Einsum", 64, 10), equation="nsf,fk->snk")  # (6, n, 10)
    recurrent = weight("LSTM", 1, 20, 10), g.random(1, 20, 5)
    g.nodes.append(helper.make_node("LSTM", [mixed, *recurrent], ["", "last"], name="lstm", hidden_size=5))
    features = g.add("Squeeze", "last", g.ints(0))  # (n, 5)
    then = branch(helper.make_node("MatMul", [features, g.random(5, 5)], ["t"], name="inside"), out="t")
    other = branch(helper.make_node("Neg", [features], ["e"]), out="e")
    condition = g.add("Greater", g.add("ReduceSum", g.add("Abs", "x"), keepdims=0), g.const(0.0))
    return g.model(g.add("If", condition, then_branch=then, else_branch=other)), weights


@pytest.mark.parametrize("layer", ["ConvTranspose", "Einsum", "LSTM"])
def test_a_fault_is_found_in_every_operator_that_multiplies(network, layer):
    model, weights = network
    reference = LoadedGraph(FILE, model)
    judged = LoadedGraph(FILE, edited(model, [weights[layer]], lambda values: 1.3 * values))
    found = attribute_graphs(BuildGraphs(reference, reference, judged, classify=False), IMAGES)
    rows = {row.op_type: row for row in found.layers}
    assert {"Conv", "ConvTranspose", "Einsum", "LSTM"} <= rows.keys()
    assert [kind for kind, row in rows.items() if row.introduced_db < 200] == [layer]
    assert max(rows.values(), key=lambda row: row.logits_share or 0).op_type == layer
    assert found.answers_changed == len(IMAGES)
    assert "logits" not in found.sentence
    assert [place.node.rpartition("/")[2] for place in found.not_compared] == ["inside"]


def test_equal_graphs_without_classes_differ_in_no_output(network):
    graph = LoadedGraph(FILE, network[0])
    found = attribute_graphs(BuildGraphs(graph, graph, graph, classify=False), IMAGES[:4])
    assert found.sentence == "No difference: the judged graph gives the reference's outputs to the last bit."
    assert found.answers_changed == 0
