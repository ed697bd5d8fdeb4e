"""Oracle: the network's own list of XNorm modules, by name and axis."""

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.errors import InputError
from calib.qdq import insert_qdq
from calib.scheme import plan_quantization
from calib.table import CalibrationTable, TensorScale
from edge.model.attention import XNorm
from edge.xnorm.sites import find_sites, island


@pytest.fixture(scope="module")
def expected(make_network):
    """(module path, axis) of every XNorm of the network, in the order of execution."""
    return [(name, module.dim) for name, module in make_network(0).named_modules() if isinstance(module, XNorm)]


@pytest.fixture(scope="module")
def quantized(tiny_graph):
    plan = plan_quantization(tiny_graph)
    scales = {name: TensorScale.from_amax(1.0, name, "made up") for name in plan.activations}
    return insert_qdq(tiny_graph, CalibrationTable("0", "0", 1, "made up", scales, synthetic=True), plan)


@pytest.fixture(params=["float", "quantized"])
def graph(request, tiny_graph, quantized):
    return tiny_graph if request.param == "float" else quantized


def test_every_xnorm_is_found_once(graph, expected):
    sites = find_sites(graph, expected=2 * (2 + 2))
    assert [(site.name.split("/")[0], site.axis) for site in sites] == expected
    assert [site.operand for site in sites] == ["q", "kv"] * 4
    assert {site.operand: site.axis for site in sites} == {"q": -1, "kv": -2}


def test_quantization_leaves_the_sites_where_they_are(tiny_graph, quantized):
    assert sum(n.op_type == "QuantizeLinear" for n in quantized.graph.node) > 20, "the graph is a quantized one"
    assert find_sites(tiny_graph) == find_sites(quantized)


def test_nodes_of_a_site_are_the_norm_and_nothing_else(graph):
    nodes = {node.name: node for node in graph.graph.node}
    for site in find_sites(graph):
        types = [nodes[name].op_type for name in site.nodes]
        assert types == (["MatMul"] if site.operand == "kv" else []) + ["ReduceL2", "Clip", "Div"]
        first, reduce, divide = nodes[site.nodes[0]], nodes[site.name], nodes[site.nodes[-1]]
        assert reduce.input[0] == divide.input[0]
        if site.operand == "kv":
            assert first.output[0] == reduce.input[0]
            assert first.name == site.name.replace("xnorm_kv/ReduceL2", "MatMul").replace("attn.MatMul", "attn/MatMul")


def test_island_is_the_union_of_the_sites(graph):
    sites = find_sites(graph)
    names = island(sites)
    assert names <= {node.name for node in graph.graph.node}
    assert len(names) == 4 * 3 + 4 * 4, "no node belongs to two sites"
    assert island(()) == frozenset()


def test_axis_of_the_other_convention_is_reported(tiny_graph):
    changed = copy.deepcopy(tiny_graph)
    site = next(s for s in find_sites(changed) if s.operand == "kv")
    node = next(n for n in changed.graph.node if n.name == site.name)
    changed.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "other_axis"))
    node.input[1] = "other_axis"
    found = {s.name: s.axis for s in find_sites(changed)}
    assert found.pop(site.name) == -1
    assert found == {s.name: s.axis for s in find_sites(tiny_graph) if s.name != site.name}


@pytest.mark.parametrize("expected_count", [0, 7, 9, 52])
def test_another_number_than_expected_is_refused(graph, expected_count):
    with pytest.raises(InputError, match=rf"does not hold the XNorms[\s\S]*found: 8 of {expected_count}: blocks\.0"):
        find_sites(graph, expected=expected_count)


@pytest.mark.parametrize("damage", ["no clip", "another dividend", "another norm"])
def test_what_is_no_xnorm_is_no_site(tiny_graph, damage):
    changed = copy.deepcopy(tiny_graph)
    nodes = {node.name: node for node in changed.graph.node}
    site = find_sites(changed)[3]
    reduce, clip, divide = (nodes[name] for name in site.nodes[-3:])
    if damage == "no clip":
        divide.input[1] = reduce.output[0]
    elif damage == "another dividend":
        divide.input[0] = clip.output[0]
    else:
        reduce.op_type = "ReduceL1"
    assert [s.name for s in find_sites(changed)] == [s.name for s in find_sites(tiny_graph) if s.name != site.name]
    with pytest.raises(InputError, match="7 of 8"):
        find_sites(changed, expected=8)


def strangers_graph(opset, axes):
    """x / max(||x||, eps) with the axes where an exporter may put them: attribute, initializer, Constant node, absent."""
    nodes, constants, attributes = [], [numpy_helper.from_array(np.float32(1e-4), "eps")], {}
    inputs = ["x"]
    if axes == "attribute":
        attributes["axes"] = [-1]
    elif axes == "initializer":
        constants.append(numpy_helper.from_array(np.array([-1], np.int64), "axes"))
        inputs.append("axes")
    elif axes == "constant node":
        nodes.append(h.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([-1], np.int64))))
        inputs.append("axes")
    nodes += [
        h.make_node("ReduceL2", inputs, ["n"], name="norm", **attributes),
        h.make_node("Max", ["n", "eps"], ["c"], name="clamp"),
        h.make_node("Div", ["x", "c"], ["y"], name="divide"),
    ]
    value_info = [h.make_tensor_value_info(name, T.FLOAT, [2, 3]) for name in ("x", "y")]
    graph = h.make_graph(nodes, "g", value_info[:1], value_info[1:], constants)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize(
    ("opset", "axes"), [(13, "attribute"), (20, "initializer"), (20, "constant node"), (13, "absent"), (20, "absent")]
)
def test_axes_wherever_an_exporter_puts_them(opset, axes):
    model = strangers_graph(opset, axes)
    if axes == "absent":  # a norm over the whole tensor
        with pytest.raises(InputError, match=r"XNorm[\s\S]*norm"):
            find_sites(model)
    else:
        assert [(s.name, s.axis, s.operand, s.nodes) for s in find_sites(model)] == [
            ("norm", -1, "q", ("norm", "clamp", "divide"))
        ]
