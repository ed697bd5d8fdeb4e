"""Bounds without data. Oracles: every tensor that a proof is about, tapped on real runs; gammas of the torch network, and what
Cauchy and Schwarz make of them.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from attention_graphs import D, N, along_rows, hostile_images, joint_attention

from calib.collect import CollectConfig, collect_table
from calib.errors import InputError
from calib.ort_session import TappedGraph
from calib.qdq_placement import plan_quantization
from edge.stability.bound_propagation import ROUNDING, propagate_bounds
from edge.stability.finders.xnorm import find_sites

pytestmark = pytest.mark.slow

HEADS, DIM = 2, 16


@pytest.fixture(scope="module")
def unfolded(make_network):
    """The network with its gammas still in place."""
    from edge.model.export import to_onnx

    return to_onnx(make_network(0))


@pytest.fixture(params=["folded, columns", "folded, rows", "unfolded, columns", "unfolded, rows"])
def graph(request, tiny_graph, unfolded):
    gammas, axis = request.param.split(", ")
    graph = tiny_graph if gammas == "folded" else unfolded
    return graph if axis == "columns" else along_rows(graph)


@pytest.fixture(scope="module")
def gammas(make_network):
    """{attention: (|gamma_q|, |gamma_kv|)}, each (H,)."""
    return {
        name.removesuffix(".xnorm_q"): tuple(
            np.abs(modules.gamma.detach().double().numpy().ravel()) for modules in (module, attention.xnorm_kv)
        )
        for name, module in make_network(0).named_modules()
        if name.endswith(".xnorm_q")
        for attention in [dict(make_network(0).named_modules())[name.removesuffix(".xnorm_q")]]
    }


def broken(proofs, tensors):
    """Names of the tensors that exceed their proof, head by head where it is by head."""
    found = []
    for name, proof in proofs.items():
        largest = np.abs(tensors[name]).max(axis=tuple(i for i in range(tensors[name].ndim) if i != 1 or proof.bound.size == 1))
        if (largest > proof.bound * (1 + ROUNDING)).any():
            found.append(name)
    return found


@pytest.mark.parametrize("images", ["noise", "hostile"])
def test_no_tensor_exceeds_its_proof(graph, tiny_images, images):
    batch = tiny_images if images == "noise" else hostile_images(32, np.random.default_rng(0))
    proofs = propagate_bounds(graph, find_sites(graph))
    tensors = TappedGraph(graph, tuple(proofs))(batch)
    assert len(proofs) >= 8 + 4
    assert broken(proofs, tensors) == []
    halved = {name: replace(proof, bound=proof.bound / 2) for name, proof in proofs.items()}
    assert len({site.output for site in find_sites(graph)} & set(broken(halved, tensors))) >= 6, "negative control"


def test_the_attention_s_output_is_bounded_by_its_gammas(unfolded, gammas):
    """|gamma_q gamma_kv| head by head where columns are normalised, sqrt(D) times that where rows are."""
    for graph, factor in ((unfolded, 1.0), (along_rows(unfolded), DIM**0.5)):
        proofs = propagate_bounds(graph, find_sites(graph))
        for path, (gamma_q, gamma_kv) in gammas.items():
            (product,) = (
                node.output[0]
                for node in graph.graph.node
                if node.op_type == "MatMul" and node.name.startswith(f"{path}/") and node.output[0] in proofs
            )
            np.testing.assert_allclose(proofs[product].bound, gamma_q * gamma_kv * factor, rtol=1e-6)
            assert set(proofs[product].sites) == {f"{path}.xnorm_q/ReduceL2", f"{path}.xnorm_kv/ReduceL2"}
            scaled = [p.bound for name, p in proofs.items() if name.startswith(f"{path}.xnorm_q/Mul")]
            np.testing.assert_allclose(scaled, [gamma_q], rtol=1e-6)
        assert len(proofs) >= 8 * 2 + 4


def test_folded_gammas_leave_one(tiny_graph):
    proofs = propagate_bounds(tiny_graph, find_sites(tiny_graph))
    assert {float(proof.bound.max()) for proof in proofs.values()} == {1.0}
    assert {
        float(p.bound.max()) for p in propagate_bounds(along_rows(tiny_graph), find_sites(along_rows(tiny_graph))).values()
    } == {
        1.0,
        4.0,
    }
    assert max(proof.largest for proof in proofs.values()) == 1 + ROUNDING


def test_the_bound_is_reached():
    """Queries along the columns: cos = 1. The bound is at most as loose as its rounding."""
    model = joint_attention()
    (proof,) = (p for name, p in propagate_bounds(model, find_sites(model)).items() if name == "o")
    x = np.random.default_rng(0).normal(size=(5000, 1, 8)).repeat(N, 1).astype(np.float32)
    assert 0.95 < np.abs(TappedGraph(model, ("o",))(x)["o"]).max() <= proof.largest


def test_a_side_of_unknown_direction_costs_a_factor():
    model = joint_attention()
    turned = onnx.ModelProto()
    turned.CopyFrom(model)
    for node in turned.graph.node:
        if node.output[0] == "o":  # K^T V transposed: its vectors now lie across the contraction
            node.input[1] = "turned"
    at = next(i for i, node in enumerate(turned.graph.node) if node.output[0] == "o")
    turned.graph.node.insert(at, onnx.helper.make_node("Transpose", ["ukv"], ["turned"], perm=[0, 1, 3, 2]))
    assert propagate_bounds(turned, find_sites(turned))["o"].largest == pytest.approx(D**0.5, rel=0.01)
    assert propagate_bounds(model, find_sites(model))["o"].largest == pytest.approx(1, rel=0.01)


@pytest.fixture(scope="module")
def calibrate(tiny_graph, tiny_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("proofs") / "model.onnx"
    path.write_bytes(tiny_graph.SerializeToString())
    plan = plan_quantization(tiny_graph)

    def run(bounds, method="minmax"):
        config = CollectConfig(method=method, min_images=1)
        return collect_table(path, [tiny_images], plan, data_sha256="0", bounds=bounds, config=config)

    return run


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_a_table_says_whether_data_or_proof_decided(tiny_graph, calibrate, method):
    proofs = {name: proof.largest for name, proof in propagate_bounds(tiny_graph, find_sites(tiny_graph)).items()}
    plain, bounded = calibrate(None, method), calibrate(proofs, method)
    assert {n: (s.amax, s.scale, s.source) for n, s in plain.tensors.items()} == {
        n: (s.amax, s.scale, s.source) for n, s in bounded.tensors.items()
    }, "the images reach no further than what is proven"
    assert {n: s.bound for n, s in bounded.tensors.items()} == {n: proofs.get(n) for n in plain.tensors}
    assert {scale.source for scale in plain.tensors.values()} == {"data"}
    assert set(proofs) & set(plain.tensors), "some calibrated tensors have a proof"


def test_a_smaller_bound_is_taken(calibrate):
    """A method that asks for more than the proof: amax stays at what can occur."""
    plain = calibrate(None)
    name, scale = next((n, s) for n, s in plain.tensors.items() if s.amax > 0.1)
    kept = calibrate({name: scale.amax}).tensors[name]
    assert (kept.source, kept.amax) == ("proof", scale.amax), "equal: what is proven needs no image"
    wider = calibrate({name: 2 * scale.amax}).tensors[name]
    assert (wider.source, wider.amax, wider.bound) == ("data", scale.amax, 2 * scale.amax)
    table = type(scale).from_amax(scale.amax, name, "percentile", bound=scale.amax / 2)
    assert (table.source, table.amax) == ("proof", scale.amax / 2)
    assert table.scale < scale.scale


def test_a_bound_that_does_not_hold_is_refused(calibrate):
    plain = calibrate(None)
    name, scale = next((n, s) for n, s in plain.tensors.items() if s.amax > 0.1)
    with pytest.raises(InputError, match=rf"exceeds the bound that was proven[\s\S]*tensor {name}"):
        calibrate({name: scale.amax * 0.999})
