"""Which nodes keep FP32, and Q/DQ before a norm. Oracle: nodes counted by hand, and a pair planted where none may be."""

import copy

import numpy as np
import pytest
from onnx import helper as h
from onnx import numpy_helper

from calib.calibration_table import CalibrationTable, TensorScale
from calib.qdq_placement import plan_quantization
from calib.qdq_writer import insert_qdq
from edge.stability.finders.xnorm import find_sites
from edge.stability.islands import fp32_nodes, quantized_before_norm
from engines.typed_graph import type_graph


@pytest.fixture(scope="module")
def quantized(tiny_graph):
    plan = plan_quantization(tiny_graph)
    scales = {name: TensorScale.from_amax(1.0, name, "made up") for name in plan.activations}
    return insert_qdq(tiny_graph, CalibrationTable("0", "0", 1, "made up", scales, synthetic=True), plan)


def types(graph, names):
    nodes = {node.name: node.op_type for node in graph.graph.node}
    return sorted(nodes[name] for name in names)


def casts(graph, kept):
    return sum(node.op_type == "Cast" for node in type_graph(graph, keep_fp32=kept).graph.node)


def test_without_islands_the_products_of_keys_and_values_and_their_norms_stay(tiny_graph, quantized):
    sites = find_sites(tiny_graph)
    products = fp32_nodes(tiny_graph, sites, (), with_norms=False)
    assert products == {site.nodes[0] for site in sites if site.operand == "kv"}
    assert types(tiny_graph, products) == ["MatMul"] * 4
    kept = fp32_nodes(tiny_graph, sites, ())
    assert types(tiny_graph, kept) == sorted(["MatMul", "ReduceL2", "Clip", "Div"] * 4)
    assert casts(tiny_graph, kept) == casts(tiny_graph, products), "the norms cost no Cast"
    assert fp32_nodes(quantized, find_sites(quantized), ()) == frozenset(), "INT8 products are summed in INT32"
    assert fp32_nodes(tiny_graph, (), ()) == frozenset()


@pytest.mark.parametrize("operand", ["q", "kv"])
def test_an_island_is_the_whole_site(tiny_graph, quantized, operand):
    sites = find_sites(tiny_graph)
    island = next(site for site in sites if site.operand == operand)
    kept = fp32_nodes(tiny_graph, sites, {island.name})
    others = {name for site in sites if site.operand == "kv" and site is not island for name in site.nodes}
    assert kept == {*island.nodes, *others}
    assert fp32_nodes(quantized, find_sites(quantized), {island.name}) == frozenset(island.nodes)


def test_every_site_an_island(tiny_graph):
    sites = find_sites(tiny_graph)
    kept = fp32_nodes(tiny_graph, sites, {site.name for site in sites})
    assert types(tiny_graph, kept) == sorted(["ReduceL2", "Clip", "Div"] * 8 + ["MatMul"] * 4)


def test_a_product_with_one_quantized_side_keeps_its_accumulator(quantized):
    graph = copy.deepcopy(quantized)
    site = next(site for site in find_sites(graph) if site.operand == "kv")
    product = next(node for node in graph.graph.node if node.name == site.nodes[0])
    product.input[1] = site.factors[1]
    assert fp32_nodes(graph, find_sites(graph), ()) == set(site.nodes)


def test_a_build_s_graph_has_nothing_in_front_of_a_norm(tiny_graph, quantized):
    assert quantized_before_norm(tiny_graph, find_sites(tiny_graph)) == ()
    assert quantized_before_norm(quantized, find_sites(quantized)) == ()


def plant(graph, tensor):
    """A Q/DQ pair on a tensor, read by everything that read the tensor."""
    changed = copy.deepcopy(graph)
    nodes = changed.graph.node
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == tensor:
                node.input[i] = "planted"
    at = next(i for i, node in enumerate(nodes) if tensor in node.output) + 1
    pair = [
        h.make_node("QuantizeLinear", [tensor, "s", "z"], ["codes"], name="q"),
        h.make_node("DequantizeLinear", ["codes", "s", "z"], ["planted"], name="dq"),
    ]
    rest = list(nodes[at:])
    del nodes[at:]
    nodes.extend([*pair, *rest])
    changed.graph.initializer.extend([numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")])
    return changed


@pytest.mark.parametrize("graph_name", ["tiny_graph", "quantized"])
@pytest.mark.parametrize("operand", ["q", "kv"])
def test_a_planted_pair_is_found(request, graph_name, operand):
    graph = request.getfixturevalue(graph_name)
    site = next(site for site in find_sites(graph) if site.operand == operand)
    planted = plant(graph, site.argument)
    sites = find_sites(planted)
    assert [s.name for s in sites] == [s.name for s in find_sites(graph)], "the norm is still a site"
    assert quantized_before_norm(planted, sites) == (site.name,)


def test_a_pair_behind_a_reshape_is_found(tiny_graph):
    """On the output of Q's linear layer, before Reshape and Transpose."""
    site = find_sites(tiny_graph)[0]
    makers = {name: node for node in tiny_graph.graph.node for name in node.output}
    tensor = site.argument
    while makers[tensor].op_type in ("Reshape", "Transpose"):
        tensor = makers[tensor].input[0]
    planted = plant(tiny_graph, tensor)
    assert quantized_before_norm(planted, find_sites(planted)) == (site.name,)


@pytest.mark.parametrize("where", ["after the norm", "on a factor"])
def test_a_pair_elsewhere_is_none_in_front(tiny_graph, where):
    """Negative control: after the norm, and on what K^T V is made of, Q/DQ is where it belongs."""
    site = next(site for site in find_sites(tiny_graph) if site.operand == "kv")
    planted = plant(tiny_graph, site.output if where == "after the norm" else site.factors[0])
    assert sum(node.op_type == "QuantizeLinear" for node in planted.graph.node) == 1
    assert quantized_before_norm(planted, find_sites(planted, expected=8)) == ()
