"""The emulation's sums: reductions, products, XNorm; accumulators in FP16 and in FP32. Oracles: numpy and float64."""

import numpy as np
import pytest
from engine_graphs import ISLAND, Graph, attention, convolutions, images, run
from for_all import for_all
from fp16_reference import (
    FP16_SQNR_DB,
    HALF,
    SESSIONS,
    SINGLE,
    by_tapped_graph,
    emulate,
    half,
    product_graph,
    reference,
    same,
    sqnr_db,
    wide,
)
from onnx import TensorProto

from calib.errors import GraphError
from calib.ort_session import TappedGraph
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph

LENGTHS = (1, 2, 3, 7, 17, 48)


def whole(*shape, most, seed=4):
    """Whole numbers up to `most`, thousands of which FP32 adds exactly."""
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype(SINGLE)


def pairwise_sum(values, axis):
    """float16 -> float16: element i of the lower half plus element i of the upper half; an odd last element is kept."""
    rows = list(np.moveaxis(values, axis, 0))
    while len(rows) > 1:
        middle = len(rows) // 2
        rows = [rows[i] + rows[middle + i] for i in range(middle)] + rows[2 * middle :]
    return np.expand_dims(rows[0], axis)


def reduce_in_half(operator, x, axes, keepdims):
    with np.errstate(all="ignore"):
        values = x.astype(HALF)
        values = values if operator == "ReduceSum" else values * values
        for axis in axes:
            values = pairwise_sum(values, axis)
        values = np.sqrt(values) if operator == "ReduceL2" else values
        assert values.dtype == HALF
        return (values if keepdims else values.squeeze(tuple(axes))).astype(SINGLE)


def reduce_exactly(operator, x, axes, keepdims):
    """Exact sums of whole numbers, then one rounding."""
    values = x.astype(np.float64)
    values = (values if operator == "ReduceSum" else values * values).sum(axis=tuple(axes), keepdims=keepdims)
    return half(np.sqrt(values.astype(SINGLE)) if operator == "ReduceL2" else values.astype(SINGLE))


REDUCERS = pytest.mark.parametrize("operator", ["ReduceL2", "ReduceSum", "ReduceSumSquare"])


def reducer(operator, shape, axes, keepdims):
    g = Graph(*shape)
    out = g.node(operator, ["image", g.store("axes", np.array(axes, np.int64))], "reduce", keepdims=keepdims)
    kept = [1 if i + 1 in (a % 3 for a in axes) else d for i, d in enumerate(shape)]
    gone = [d for i, d in enumerate(shape) if i + 1 not in (a % 3 for a in axes)]
    return g.model(out, *(kept if keepdims else gone))


@REDUCERS
@for_all(length=LENGTHS, axis=[-1, -2, 1, 2], keepdims=[0, 1])
def test_sums_in_fp16_are_pairwise_with_a_rounding_each(operator, length, axis, keepdims):
    shape = (5, length) if axis in (-1, 2) else (length, 5)
    x = wide(4, *shape) if length < 48 else images(*shape, batch=4) * 40
    model = reducer(operator, shape, [axis], keepdims)
    assert same(emulate(model, x), reduce_in_half(operator, x, [axis], keepdims))


@REDUCERS
def test_order_of_a_pairwise_sum_matters(operator):
    """Control: sequential addition gives other values than pairwise addition, and so does a sum in FP32."""
    x = images(5, 48, batch=4) * 25
    model = reducer(operator, (5, 48), [-1], 1)
    result = emulate(model, x)
    with np.errstate(all="ignore"):
        one_by_one = x.astype(HALF) if operator == "ReduceSum" else np.square(x.astype(HALF))
        one_by_one = np.add.accumulate(one_by_one, axis=-1, dtype=HALF)[..., -1:]
        one_by_one = np.sqrt(one_by_one) if operator == "ReduceL2" else one_by_one
    assert not same(result, one_by_one.astype(SINGLE))
    assert not same(result, emulate(model, x, accumulate="fp32"))
    assert np.isfinite(result).all()


@REDUCERS
@for_all(length=LENGTHS, keepdims=[0, 1])
def test_sums_in_fp32_are_rounded_once(operator, length, keepdims):
    x = whole(4, 5, length, most=90)
    model = reducer(operator, (5, length), [-1], keepdims)
    assert same(emulate(model, x, accumulate="fp32"), reduce_exactly(operator, x, [-1], bool(keepdims)))


def test_squares_overflow_only_in_an_fp16_accumulator():
    """Norms of about 360, within the range of FP16, with squares that overflow it."""
    x = whole(4, 5, 48, most=90)
    model = reducer("ReduceL2", (5, 48), [-1], 1)
    wider, narrower = (emulate(model, x, accumulate=a) for a in ("fp32", "fp16"))
    assert (narrower == np.inf).all()
    assert (wider < 500).all()


@REDUCERS
@pytest.mark.parametrize("axes", [[-1, -2], [1, 2], [2, 1]])
@for_all(keepdims=[0, 1])
def test_several_axes_are_summed_one_after_the_other(operator, axes, keepdims):
    x = images(7, 3, batch=4) * 30
    assert same(emulate(reducer(operator, (7, 3), axes, keepdims), x), reduce_in_half(operator, x, axes, bool(keepdims)))
    assert not same(reduce_in_half(operator, x, [-1, -2], True), reduce_in_half(operator, x, [-2, -1], True)), "order matters"


def test_a_reduction_in_an_island_stays_one_node():
    model = reducer("ReduceL2", (5, 48), [-1], 1)
    x = whole(4, 5, 48, most=90)
    typed = type_graph(model, keep_fp32=frozenset({"reduce"}))
    emulated = emulated_graph(typed)
    assert [n.op_type for n in emulated.graph.node if n.op_type != "Cast"].count("ReduceL2") == 1
    result = by_tapped_graph(emulated, x)
    np.testing.assert_array_max_ulp(result, np.sqrt((x.astype(np.float64) ** 2).sum(-1, keepdims=True)).astype(SINGLE), 1)
    assert not same(result, half(result))


def test_a_reduction_without_fixed_axes_is_refused():
    """Without a sum, the output would have the wrong shape, or the right one by chance."""
    g = Graph(4)
    axes = g.node("Cast", [g.store("where", SINGLE([-1]))], "axes", to=TensorProto.INT64)
    typed = type_graph(g.model(g.node("ReduceL2", ["image", axes], "reduce", keepdims=1), "width"))
    with pytest.raises(GraphError, match=r"axes[\s\S]*reduce"):
        emulated_graph(typed)
    emulated_graph(typed, accumulate="fp32")


def product_in_half(x, rows=3, step=16):
    """The accumulator is rounded to FP16 after every `step` products, which are added in one operation."""
    with np.errstate(all="ignore"):
        left, right = np.swapaxes(x[..., :rows], -1, -2).astype(HALF), x[..., rows:].astype(HALF)
        total = np.zeros((*left.shape[:-1], right.shape[-1]), HALF)
        for start in range(0, left.shape[-1], step):
            part = np.zeros(total.shape, np.float64)
            for k in range(start, min(start + step, left.shape[-1])):
                part += left[..., :, k : k + 1].astype(np.float64) * right[..., k : k + 1, :].astype(np.float64)
            total = (total.astype(np.float64) + part).astype(SINGLE).astype(HALF)
        return total.astype(SINGLE)


def eighths(*shape, most, seed=5):
    return whole(*shape, most=most, seed=seed) / 8


DEPTHS = (1, 3, 7, 16, 17, 40, 48, 196)


@SESSIONS
@for_all(depth=DEPTHS)
def test_a_product_of_activations_rounds_its_accumulator_every_16(session, depth):
    x = eighths(2, depth, 7, most=300)
    assert same(emulate(product_graph(depth), x, session=session), product_in_half(x))


@for_all(depth=DEPTHS)
def test_a_product_with_an_fp32_accumulator_rounds_once(depth):
    x = eighths(2, depth, 7, most=300)
    exact = np.swapaxes(x[..., :3], -1, -2).astype(np.float64) @ x[..., 3:].astype(np.float64)
    result = emulate(product_graph(depth), x, accumulate="fp32")
    assert same(result, half(exact.astype(SINGLE)))
    assert same(emulate(product_graph(depth), x), result) == (depth <= 16)
    if depth > 16:
        assert not same(product_in_half(x, step=8), product_in_half(x)), "control: another step depth gives other values"


def test_an_accumulator_that_overflows_on_the_way_stays_infinite():
    """32 products of 4096 exceed the range of FP16; 32 of -4096 cancel them: 0 in FP32."""
    x = np.ones((1, 64, 7), SINGLE) * 64
    x[:, 32:, 3:] = -64
    assert same(emulate(product_graph(64), x, accumulate="fp32"), np.zeros((1, 3, 4), SINGLE))
    assert (emulate(product_graph(64), x) == np.inf).all()
    x[:, 1::2, 3:] = -64
    x[:, ::2, 3:] = 64
    assert (emulate(product_graph(64), x) == 0).all(), "control: they cancel within every step"


@pytest.mark.parametrize("accumulate", ["fp16", "fp32"])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv"])
def test_products_with_weights_sum_in_fp32(operator, accumulate):
    shape = {"MatMul": (3, 48), "Gemm": (48,), "Conv": (48, 2, 2)}[operator]
    g = Graph(*shape)
    weight = eighths(*{"MatMul": (48, 5), "Gemm": (5, 48), "Conv": (5, 48, 1, 1)}[operator], most=300)
    attributes = {"transB": 1} if operator == "Gemm" else {}
    model = g.model(
        g.node(operator, ["image", g.store("w", weight)], "n", **attributes),
        *{"MatMul": (3, 5), "Gemm": (5,), "Conv": (5, 2, 2)}[operator],
    )
    x = eighths(2, *shape, most=300, seed=6)
    equation = {"MatMul": "bmk,kn->bmn", "Gemm": "bk,nk->bn", "Conv": "bkhw,nk->bnhw"}[operator]
    exact = np.einsum(equation, x.astype(np.float64), weight.reshape(5, 48) if operator == "Conv" else weight)
    result = emulate(model, x, accumulate=accumulate)
    assert same(result, half(exact.astype(SINGLE)))
    assert not same(result, exact.astype(SINGLE)), "control: the rounding has an effect"


@pytest.mark.parametrize("summed", ["ReduceL2", "MatMul"])
def test_an_unknown_length_is_refused_where_it_is_summed_over(summed):
    g = Graph(5, "tokens")
    if summed == "ReduceL2":
        out = g.node("ReduceL2", ["image", g.store("axes", np.array([-1], np.int64))], "sum")
        model, x = g.model(out, 5, 1), whole(2, 5, 7, most=9)
    else:
        g.node("Transpose", ["image"], "turn", perm=[0, 2, 1])
        model, x = g.model(g.node("MatMul", ["image", "turn_out"], "sum"), 5, 5), whole(2, 5, 7, most=9)
    typed = type_graph(model)
    with pytest.raises(GraphError, match=r"length of a summed axis is not fixed[\s\S]*image/fp16, axis -1"):
        emulated_graph(typed)
    assert np.isfinite(by_tapped_graph(emulated_graph(typed, accumulate="fp32"), x)).all()
    assert np.isfinite(emulate(model, x, keep=frozenset({"sum"}))).all(), "an island is not summed in FP16"


def xnorm(axis=-1, length=48):
    g = Graph(2, 5, length) if axis == -1 else Graph(2, length, 5)
    norm = g.node("ReduceL2", ["image", g.store("axes", np.array([axis], np.int64))], "norm", keepdims=1)
    clamp = g.node("Clip", [norm, g.store("eps", np.array(2.0**-14, SINGLE))], "clamp")
    return g.model(g.node("Div", ["image", clamp], "divide"), *g.shape)


XNORM_ISLAND = frozenset({"norm", "clamp", "divide"})


@SESSIONS
@for_all(axis=[-1, -2])
def test_overflow_of_an_xnorm_shows_only_here(session, axis):
    model = xnorm(axis)
    x = images(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])) * 300
    exact = x / np.linalg.norm(x.astype(np.float64), axis=axis, keepdims=True)
    typed = type_graph(model)
    emulated = emulated_graph(typed)
    names = ("norm_out", "clamp_out")
    assert all((values == np.inf).all() for values in TappedGraph(emulated, names)(x).values())
    assert (session(emulated, x) == 0).all()
    wider = session(emulated_graph(typed, accumulate="fp32"), x)
    assert same(wider, half(wider))
    np.testing.assert_allclose(wider, exact, rtol=2.0**-9)
    island = session(emulated_graph(type_graph(model, keep_fp32=XNORM_ISLAND)), x)
    np.testing.assert_allclose(island, exact, rtol=2.0**-10)
    # Reason for the emulation: ONNX Runtime computes the same typed graph in FP32 and hides the overflow.
    np.testing.assert_allclose(session(typed, x), exact, rtol=2.0**-9)


@SESSIONS
def test_underflow_of_an_xnorm_shows_only_here(session):
    """Squares of 2^-13 are zero in FP16, and so is their norm: the clamp gives a vector that is far from unit length."""
    x = np.full((1, 2, 5, 48), 2.0**-13, SINGLE)
    assert same(emulate(xnorm(), x, session=session), np.full_like(x, 2))
    exact = np.full_like(x, 48**-0.5)
    np.testing.assert_allclose(session(type_graph(xnorm()), x), exact, rtol=2.0**-9)
    np.testing.assert_allclose(emulate(xnorm(), x, keep=XNORM_ISLAND, session=session), exact, rtol=2.0**-10)


def test_an_island_does_not_round():
    """(x / 3) * 0.1 + 2^-12 in FP32; the nodes around it in FP16, like the reference evaluator."""
    g = Graph(400)
    g.store("third", np.full(1, 1 / 3, SINGLE))
    first = g.node("Mul", ["image", "third"], "first")
    inside = g.node("Mul", [first, g.store("tenth", np.full(1, 0.1, SINGLE))], "inside")
    inside = g.node("Add", [inside, g.store("small", np.full(1, 2.0**-12, SINGLE))], "inside too")
    model = g.model(g.node("Sqrt", [g.node("Abs", [inside], "after")], "last"), 400)
    keep = frozenset({"inside", "inside too"})
    typed = type_graph(model, keep_fp32=keep)
    x = wide(2, 400)
    expected = reference(typed, x)
    emulated = emulated_graph(typed)
    assert same(by_tapped_graph(emulated, x), expected)
    assert not same(emulate(model, x), expected), "control: without the island"
    names = ("first_out", "inside_out", "inside too_out", "after_out", "last_out")
    values = TappedGraph(emulated, names)(x)
    assert {name: same(v, half(v)) for name, v in values.items()} == {
        "first_out": True, "inside_out": False, "inside too_out": False, "after_out": True, "last_out": True,
    }  # fmt: skip


@pytest.mark.parametrize("accumulate", ["fp16", "fp32"])
@pytest.mark.parametrize("island", [frozenset(), ISLAND])
@pytest.mark.parametrize(("model", "shape"), [(attention(), (8, 16)), (convolutions(), (8, 12, 12))])
def test_a_network_within_the_range_of_fp16_stays_near_fp32(model, shape, island, accumulate):
    x = images(*shape)
    keep = frozenset(island & {n.name for n in model.graph.node})
    result = emulate(model, x, keep=keep, accumulate=accumulate)
    assert FP16_SQNR_DB < sqnr_db(run(model, x), result) < 90, "close, but not equal"
    assert sqnr_db(run(model, x), 2 * result) < 10
