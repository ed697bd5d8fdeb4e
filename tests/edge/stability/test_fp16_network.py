"""A whole network in emulated FP16. Oracle: the same network in torch, in half precision on the CPU, element by element.

Every network gives its tokens length 8, harmless in FP16, then multiplies them by thousands on the way into one place that
overflows, or does not. torch's half operators round every result; its sums are rounded once, at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_graphs import Graph

from calib.ort_session import TappedGraph
from edge.stability.fp16_network import compare_outputs, emulated_agreement, first_departure, image_count
from edge.stability.target_precisions import target_precisions

TOKENS, WIDTH, CLASSES = 16, 32, 10


@dataclass(frozen=True)
class Network:
    """A place in ONNX and in torch, and what FP16 loses first there; "" where it loses nothing."""

    onnx: Callable[[Graph, str], str]
    torch: Callable[[Any], Any]
    lost: str
    lost_on_rtx: str


def axes(g, *values):
    return g.store(f"axes{values}", np.array(values, np.int64))


def number(g, name, value):
    return g.store(name, np.float32(value))


def layer_norm(g, h):
    d = g.node("Sub", [h, g.node("ReduceMean", [h, axes(g, -1)], "mean")], "deviation")
    variance = g.node("ReduceMean", [g.node("Mul", [d, d], "square"), axes(g, -1)], "variance")
    spread = g.node("Sqrt", [g.node("Add", [variance, number(g, "eps", 1e-4)], "guarded")], "spread")
    return g.node("Div", [d, spread], "normalised")


def layer_norm_in_torch(h):
    d = h - h.mean(-1, keepdim=True)
    return d / ((d * d).mean(-1, keepdim=True) + 1e-4).sqrt()


def rsqrt_norm(g, h):
    total = g.node("ReduceSum", [g.node("Mul", [h, h], "square"), axes(g, -1)], "total")
    root = g.node("Sqrt", [g.node("Add", [total, number(g, "eps", 1e-4)], "guarded")], "root")
    return g.node("Mul", [h, g.node("Div", [number(g, "one", 1), root], "inverse")], "normalised")


def rsqrt_norm_in_torch(h):
    return h * (1 / ((h * h).sum(-1, keepdim=True) + 1e-4).sqrt())


def response_norm(g, h):
    norm = g.node("ReduceL2", [h, axes(g, 1)], "norm")
    mean = g.node("ReduceMean", [norm, axes(g, -1)], "mean")
    return g.node("Mul", [h, g.node("Div", [norm, g.node("Add", [mean, number(g, "eps", 1e-4)], "guarded")], "gate")], "gated")


def response_norm_in_torch(h):
    norm = (h * h).sum(1, keepdim=True).sqrt()
    return h * (norm / (norm.mean(-1, keepdim=True) + 1e-4))


def response_norm_widened(h):
    norm = h.float().square().sum(1, keepdim=True).sqrt().to(h.dtype)
    return h * (norm / (norm.mean(-1, keepdim=True) + 1e-4))


def attention(g, h):
    logits = g.node("MatMul", [h, g.node("Transpose", [h], "turn", perm=[0, 2, 1])], "logits")
    mixed = g.node("MatMul", [g.node("Softmax", [logits], "weights", axis=-1), h], "mixed")
    return g.node("Mul", [mixed, number(g, "small", 0.01)], "scaled")


def attention_in_torch(h):
    return (h @ h.mT).softmax(-1) @ h * 0.01


def harmless(g, h):
    return g.node("Mul", [h, number(g, "small", 0.01)], "scaled")


NETWORKS = {
    "LayerNorm in pieces": Network(layer_norm, layer_norm_in_torch, "square_out", "square_out"),
    "rsqrt norm": Network(rsqrt_norm, rsqrt_norm_in_torch, "square_out", "square_out"),
    "response norm": Network(response_norm, response_norm_in_torch, "norm_out", ""),
    "attention logits": Network(attention, attention_in_torch, "logits_out", "logits_out"),
    "harmless": Network(harmless, lambda h: h * 0.01, "", ""),
}


def in_onnx(place):
    g = Graph(TOKENS, WIDTH)
    h = g.node("MatMul", ["image", g.weight("first", WIDTH, WIDTH)], "first_layer")
    norm = g.node("Clip", [g.node("ReduceL2", [h, axes(g, -1)], "length"), number(g, "floor", 1e-4)], "clamped")
    h = g.node("Mul", [g.node("Div", [h, norm], "direction"), number(g, "eight", 8)], "tokens")
    h = place(g, g.node("MatMul", [h, g.weight("second", WIDTH, WIDTH, scale=250)], "stream"))
    h = g.node("ReduceMean", [h, axes(g, 1)], "pooled", keepdims=0)
    return g.model(g.node("MatMul", [h, g.weight("head", WIDTH, CLASSES)], "logits_of_classes"), CLASSES), g.weights


def in_torch(network, weights, x, dtype):
    first, second, head = (torch.from_numpy(weights[name]).to(dtype) for name in ("first", "second", "head"))
    h = torch.from_numpy(x).to(dtype) @ first
    h = h / h.float().norm(dim=-1, keepdim=True).to(dtype) * 8  # widened, as a ReduceL2 of short vectors may be
    return (network.torch(h @ second).mean(1) @ head).float().numpy()


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(0).standard_normal((8, TOKENS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module", params=NETWORKS)
def run(request, photos):
    network = NETWORKS[request.param]
    model, weights = in_onnx(network.onnx)
    single, half = (in_torch(network, weights, photos, dtype) for dtype in (torch.float32, torch.float16))
    expected = [{"logits": row} for row in single]
    return SimpleNamespace(
        network=network, model=model, weights=weights, single=single,
        torch=compare_outputs(expected, [{"logits": row} for row in half]),
        emulated=emulated_agreement(model, model, photos),
        on_rtx=emulated_agreement(model, model, photos, precisions=target_precisions("rtx")),
    )  # fmt: skip


def loses(agreement):
    return agreement.not_finite > 0 or agreement.sqnr_db < 30


def test_both_spellings_are_one_network(run, photos):
    (name,) = (value.name for value in run.model.graph.output)
    np.testing.assert_allclose(TappedGraph(run.model, (name,))(photos)[name], run.single, rtol=1e-3, atol=1e-4)


def test_the_emulation_and_torch_agree_on_what_is_destroyed(run):
    assert loses(run.torch) == loses(run.emulated) == bool(run.network.lost), f"torch {run.torch}, emulated {run.emulated}"
    if not run.network.lost:
        assert abs(run.torch.sqnr_db - run.emulated.sqnr_db) < 4, f"torch {run.torch}, emulated {run.emulated}"
        assert run.emulated.sqnr_db > 50


def test_what_the_target_widens_is_not_lost(run, photos):
    assert loses(run.on_rtx) == bool(run.network.lost_on_rtx), run.on_rtx
    if run.network.lost and not run.network.lost_on_rtx:
        widened = Network(run.network.onnx, response_norm_widened, "", "")
        half = in_torch(widened, run.weights, photos, torch.float16)
        oracle = compare_outputs([{"logits": row} for row in run.single], [{"logits": row} for row in half])
        assert abs(oracle.sqnr_db - run.on_rtx.sqnr_db) < 4, f"torch {oracle}, emulated {run.on_rtx}"


def test_the_first_lost_tensor_is_named(run, photos):
    found = first_departure(run.model, photos)
    assert (found.tensor if found else "") == run.network.lost
    found = first_departure(run.model, photos, precisions=target_precisions("rtx"))
    assert (found.tensor if found else "") == run.network.lost_on_rtx


def test_nodes_kept_in_fp32_lose_nothing(photos):
    model, _ = in_onnx(layer_norm)
    kept = frozenset({"mean", "deviation", "square", "variance", "guarded", "spread", "normalised"})
    assert emulated_agreement(model, model, photos, keep_fp32=kept).sqnr_db > 50
    assert first_departure(model, photos, keep_fp32=kept) is None


def test_a_mask_is_not_lost(photos):
    """-3e38, added to logits, is -inf in FP16, and its softmax the same zero."""
    g = Graph(TOKENS, WIDTH)
    mask = np.where(np.arange(WIDTH) < 8, np.finfo(np.float32).min, 0).astype(np.float32)
    gate = g.node("Where", [g.store("dark", mask < 0), number(g, "low", -60000), number(g, "none", 0)], "gate")
    low = g.node("Mul", [gate, number(g, "scale", 1000)], "low_mask")
    masked = g.node("Add", ["image", low], "masked")
    model = g.model(g.node("Softmax", [masked], "weights", axis=-1), TOKENS, WIDTH)
    result = emulated_agreement(model, model, photos)
    assert result.not_finite == 0
    assert result.agreement is None
    assert result.sqnr_db > 50
    assert first_departure(model, photos) is None


def rows(*values):
    return [{"scores": np.float32([v, 2]), "boxes": np.float32([[v, 1, 1], [2, 2, v]])} for v in values]


def test_the_worst_output_counts():
    expected = rows(1, 2, 3, 4)
    assert compare_outputs(expected, expected).sqnr_db == np.inf
    off = [{**image, "boxes": image["boxes"] * np.float32(1.1)} for image in expected]
    result = compare_outputs(expected, off)
    assert (result.worst_output, round(result.sqnr_db), result.agreement) == ("boxes", 20, None)
    spoiled = [*expected[:3], {**expected[3], "scores": np.float32([np.nan, 2])}]
    assert compare_outputs(expected, spoiled).not_finite == 1
    assert compare_outputs(spoiled, spoiled).not_finite == 0, "not a number in FP32 either"
    lost = [{name: values * np.float32(np.inf) for name, values in image.items()} for image in expected]
    assert compare_outputs(expected, lost).sqnr_db == -np.inf
    other = [{**image, "boxes": image["boxes"][:1]} for image in expected]
    assert compare_outputs(expected, other).not_finite == 4, "another number of boxes"


def test_a_large_network_is_emulated_on_fewer_images():
    g = Graph(4096, 1024)
    model = g.model(g.node("MatMul", ["image", g.weight("w", 1024, 2048)], "layer"), 4096, 2048)
    assert image_count(model, 64) == 9
    small, _ = in_onnx(harmless)
    assert (image_count(small, 64), image_count(small, 5)) == (16, 5)


def test_fixed_batches_are_run_one_after_the_other(photos):
    model, _ = in_onnx(harmless)
    one = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*one.graph.input, *one.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    single, several = (emulated_agreement(graph, graph, photos) for graph in (one, model))
    assert (single.images, single.agreement) == (several.images, several.agreement)
    assert single.sqnr_db == pytest.approx(several.sqnr_db, abs=0.1)
