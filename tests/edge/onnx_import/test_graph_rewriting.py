"""What a replacement keeps. Oracle: ONNX's checker and ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import operators, run_text_model, text_model

from calib.ort_session import GraphSession
from edge.onnx_import.fuse_gelu import fuse_gelus
from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.rewriters import REWRITERS

X = np.linspace(-3, 3, 80, dtype=np.float32).reshape(2, 5, 8)
GELU = "d = Div(x, root2) f = Erf(d) a = Add(f, one) m = Mul(x, a) y = Mul(m, half)"
CONSTANTS = {"root2": 2**0.5, "one": 1.0, "half": 0.5}


def test_outputs_keep_their_names_and_nodes_get_unique_ones():
    body = GELU.replace("y =", "g =") + " d2 = Div(g, root2) f2 = Erf(d2) a2 = Add(f2, one) m2 = Mul(g, a2) y = Mul(m2, half)"
    model = text_model(body, **CONSTANTS)
    for node in model.graph.node:
        node.name = f"blocks.0/act/{node.op_type}_{node.output[0]}"
    places = fuse_gelus(model)
    assert {node.name for node in model.graph.node} == {"blocks.0/act/Gelu", "blocks.0/act/Gelu_1"}
    assert [place.into for place in places] == [node.name for node in model.graph.node], "in graph order"
    assert [list(node.output) for node in model.graph.node] == [["g"], ["y"]]
    assert not model.graph.initializer, "constants that nothing reads any more are gone"


def test_a_tensor_that_a_subgraph_reads_stays():
    model = text_model(GELU, **CONSTANTS)
    result = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    branches = [helper.make_graph([helper.make_node(op, ["f"], ["branch"])], op, [], [result]) for op in ("Identity", "Neg")]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], name="z", then_branch=branches[0], else_branch=branches[1]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    expected = GraphSession(model)({"x": X})
    assert len(fuse_gelus(model)) == 1
    assert operators(model) == ["Div", "Erf", "Gelu", "If"]
    results = GraphSession(model)({"x": X})
    assert all(np.abs(results[name] - expected[name]).max() < 1e-6 for name in ("y", "z"))


def test_a_graph_output_in_the_middle_stays():
    model = text_model(GELU, **CONSTANTS)
    model.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, None))
    assert len(fuse_gelus(model)) == 1
    assert operators(model) == ["Div", "Erf", "Add", "Mul", "Gelu"]
    assert np.abs(GraphSession(model)({"x": X})["m"] / 2 - run_text_model(model, X)).max() < 1e-6


@pytest.mark.parametrize("foreign", ["f", "m", "y"])
def test_operators_of_other_domains_are_not_mistaken_for_those_of_onnx(foreign):
    model = text_model(GELU, **CONSTANTS)
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    for node in model.graph.node:
        node.domain = "vendor" if node.name == foreign else ""
    before = model.SerializeToString()
    assert all(rewriter(model) == [] for rewriter in REWRITERS.values())
    assert model.SerializeToString() == before


def test_a_graph_without_anything_to_rewrite_keeps_its_bytes():
    model = text_model("a = Relu(x) y = Softmax(a)")
    before = model.SerializeToString()
    assert all(rewriter(model) == [] for rewriter in REWRITERS.values())
    assert model.SerializeToString() == before


def test_kinds_are_those_of_the_table():
    for kind, rewriter in REWRITERS.items():
        module = __import__(rewriter.__module__, fromlist=["KIND"])
        assert kind == module.KIND


def test_a_node_without_a_name_is_named_by_its_output():
    model = text_model("y = Relu(x)")
    model.graph.node[0].name = ""
    graph = GraphRewriting(onnx.ModelProto.FromString(model.SerializeToString()))
    assert graph.make_node("Neg", ["x"], graph.index.nodes["y"]).name == "y/Neg"
