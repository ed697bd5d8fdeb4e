"""Oracle: the network's own list of XNorm modules, by name and axis."""

import copy

import numpy as np
import pytest
from onnx import numpy_helper

from calib.calibration_table import CalibrationTable, TensorScale
from calib.errors import InputError
from calib.qdq_placement import plan_quantization
from calib.qdq_writer import insert_qdq
from edge.model.xnorm import XNORM_EPS, XNorm
from edge.stability.finders.xnorm import find_sites
from edge.stability.site import Eps


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


def test_argument_output_factors_and_eps_are_the_tensors_of_the_attention(graph):
    nodes = {node.name: node for node in graph.graph.node}
    for site in find_sites(graph):
        reduce, divide = nodes[site.name], nodes[site.nodes[-1]]
        assert (site.argument, site.output) == (reduce.input[0], divide.output[0])
        (eps,) = site.eps
        assert (eps.kind, eps.acts_on, eps.value, eps.node) == ("clamp", "norm", XNORM_EPS, site.nodes[-2])
        assert eps.tensor in nodes[eps.node].input
        if site.operand == "q":
            assert site.factors == ()
        else:  # K^T and V, before the Q/DQ pairs that INT8 puts on them
            path = site.name.split(".xnorm_kv")[0]
            assert [made_by_linear(graph, name) for name in site.factors] == [f"{path}.k/MatMul", f"{path}.v/MatMul"]


def made_by_linear(graph, tensor):
    """Name of the MatMul that computes a tensor, through Add, Reshape and Transpose."""
    nodes = {name: node for node in graph.graph.node for name in node.output}
    while nodes[tensor].op_type != "MatMul":
        inputs = [name for name in nodes[tensor].input if name in nodes]
        assert nodes[tensor].op_type in ("Add", "Reshape", "Transpose"), "no Q/DQ in between"
        tensor = inputs[0]
    return nodes[tensor].name


@pytest.mark.parametrize(("value", "acts_on", "expected"), [(4.0, "norm", 4.0), (4.0, "square", 2.0)])
def test_eps_in_units_of_the_norm(value, acts_on, expected):
    assert Eps("clamp", acts_on, value, "node", "tensor").on_norm == expected


def test_axis_of_the_other_convention_is_reported(tiny_graph):
    changed = copy.deepcopy(tiny_graph)
    site = next(s for s in find_sites(changed) if s.operand == "kv")
    node = next(n for n in changed.graph.node if n.name == site.name)
    changed.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "other_axis"))
    node.input[1] = "other_axis"
    found = {s.name: s.axis for s in find_sites(changed)}
    assert found.pop(site.name) == -1
    assert found == {s.name: s.axis for s in find_sites(tiny_graph) if s.name != site.name}
    with pytest.raises(InputError, match=rf"another axis[\s\S]*{site.name}[\s\S]*found: axis -1 at 1 XNorms[\s\S]*axis -2"):
        find_sites(changed, expected=8, kv_axis=-2)


def test_the_network_s_own_axis_is_asked_for(graph):
    assert find_sites(graph, expected=8, kv_axis=-2) == find_sites(graph)
    with pytest.raises(InputError, match=r"found: axis -2 at 4 XNorms"):
        find_sites(graph, kv_axis=-1)


@pytest.mark.parametrize("expected_count", [0, 7, 9, 52])
def test_another_number_than_expected_is_refused(graph, expected_count):
    with pytest.raises(InputError, match=rf"does not hold the XNorms[\s\S]*found: 8 of {expected_count}: blocks\.0"):
        find_sites(graph, expected=expected_count)


@pytest.mark.parametrize(
    "damage", ["another dividend", "another norm", "an eps that is computed", "an inner eps of two numbers"]
)
def test_what_is_no_xnorm_is_no_site(tiny_graph, damage):
    changed = copy.deepcopy(tiny_graph)
    nodes = {node.name: node for node in changed.graph.node}
    site = find_sites(changed)[3]
    reduce, clip, divide = (nodes[name] for name in site.nodes[-3:])
    if damage == "another dividend":
        divide.input[0] = clip.output[0]
    elif damage == "another norm":
        reduce.op_type = "ReduceL1"
    elif damage == "an eps that is computed":
        clip.op_type = "Add"
        clip.input[1] = site.argument
    else:
        changed.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "two"))
        clip.op_type = "Add"
        clip.input[1] = "two"
    assert [s.name for s in find_sites(changed)] == [s.name for s in find_sites(tiny_graph) if s.name != site.name]
    with pytest.raises(InputError, match="7 of 8"):
        find_sites(changed, expected=8)


def test_a_norm_without_eps_is_a_site_too(tiny_graph):
    changed = copy.deepcopy(tiny_graph)
    nodes = {node.name: node for node in changed.graph.node}
    site = find_sites(changed)[3]
    reduce, divide = nodes[site.name], nodes[site.nodes[-1]]
    divide.input[1] = reduce.output[0]
    found = find_sites(changed, expected=8)[3]
    assert (found.name, found.eps) == (site.name, ())
    assert found.nodes == (*site.nodes[:-2], site.nodes[-1])
