"""emulated_graph: oracles are numpy's own float16 (IEEE 754 binary16, every operation correctly rounded), as loops written here
and as onnx's reference evaluator uses it on the *typed* graph, and ONNX Runtime on the FP32 graph. Sums run over numbers that
FP32 adds exactly, so that results can be compared bit by bit whatever the order of an FP32 sum.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_graphs import ISLAND, Graph, attention, convolutions, images, run
from for_all import for_all
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from calib.errors import InputError
from calib.ort_session import TappedGraph
from edge.runtime.ort_runner import OrtRunner
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph

HALF, SINGLE = np.float16, np.float32
LENGTHS = (1, 2, 3, 7, 17, 48)
FP16_SQNR_DB = 50.0  # 11 significant bits leave 66 dB for one rounding; these graphs stack a few


def by_tapped_graph(model, x):
    output = model.graph.output[0].name
    return TappedGraph(model, (output,))(x)[output]


def by_ort_runner(model, x):
    return OrtRunner(Path("in memory"), 1, data=model.SerializeToString())(x)


SESSIONS = pytest.mark.parametrize("session", [by_tapped_graph, by_ort_runner])


def emulate(model, x, *, keep=frozenset(), accumulate="fp16", session=by_tapped_graph):
    return session(emulated_graph(type_graph(model, keep_fp32=keep), accumulate=accumulate), x)


def half(values):
    """r(.): FP32 numbers rounded to FP16."""
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(HALF).astype(SINGLE)


def reference(typed, x):
    """onnx's reference evaluator on a typed graph: numpy float16, node by node."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(typed).run(None, {"image": x})[0]


def wide(*shape, seed=3):
    """Both signs, magnitudes 2^-27 to 2^17: beyond what FP16 holds on either side."""
    random = np.random.default_rng(seed)
    return (np.exp2(random.uniform(-27, 17, shape)) * random.choice([-1, 1], shape)).astype(SINGLE)


def whole(*shape, most, seed=4):
    """Whole numbers up to `most`, of which FP32 adds thousands exactly."""
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype(SINGLE)


def same(found, expected):
    """Equal to the bit, but for the sign of NaN."""
    found, expected = np.asarray(found), np.asarray(expected)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    nan = np.isnan(found)
    return bool((nan == np.isnan(expected)).all() and (found.view(np.uint32) == expected.view(np.uint32))[~nan].all())


def sqnr_db(expected, found):
    noise = np.square(expected.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / max(noise, 1e-30)))


def squared(n=1, *, nodes=1):
    """(n,) -> its values times 1: `nodes` FP16 nodes that change nothing but by rounding."""
    g = Graph(n)
    g.store("two", np.full(1, 2, SINGLE))
    out = "image"
    for i in range(nodes):
        g.store(f"half{i}", np.full(1, 0.5, SINGLE))
        out = g.node("Mul", [g.node("Mul", [out, f"half{i}"], f"halve{i}"), "two"], f"double{i}")
    return g.model(out, n)


# Comparators --------------------------------------------------------------------------------------------------------------


def test_comparators_see_damage():
    x = images(7)
    assert same(x, x.copy())
    for damaged in (
        2 * x,
        x / 2,
        -x,
        np.nextafter(x, np.float32(9)),
        x[:, :6],
        x.astype(HALF),
        np.where(x == x[1, 2], np.nan, x),
    ):
        assert not same(damaged, x)
    assert not same(np.float32([0.0]), np.float32([-0.0]))
    assert sqnr_db(x, 2 * x) < 10 < FP16_SQNR_DB < sqnr_db(x, x)
    assert not sqnr_db(x, np.where(x == x[1, 2], np.nan, x)) > FP16_SQNR_DB


# ONNX Runtime keeps the roundings -----------------------------------------------------------------------------------------

LANDMARKS = {
    1 + 2.0**-12: 1.0,
    1 + 2.0**-11: 1.0,  # a tie, to even
    1 + 3 * 2.0**-11: 1 + 2.0**-9,  # a tie, to even
    -2049.0: -2048.0,
    65504.0: 65504.0,
    65519.0: 65504.0,
    65520.0: np.inf,
    70000.0: np.inf,
    -1e30: -np.inf,
    2.0**-14 * (1 + 2.0**-12): 2.0**-14,
    2.0**-24: 2.0**-24,
    1.5 * 2.0**-24: 2.0**-23,  # a tie, to even
    1.5 * 2.0**-25: 2.0**-24,
    2.0**-25: 0.0,  # a tie, to even
    2.0**-26: 0.0,
    -1e-30: -0.0,
    np.nan: np.nan,
}


@SESSIONS
def test_a_cast_pair_rounds_as_binary16_does(session):
    g = Graph(len(LANDMARKS))
    model = g.model(g.node("Neg", ["image"], "negate"), len(LANDMARKS))
    x = np.array([list(LANDMARKS)], SINGLE)
    assert same(-emulate(model, x, session=session), np.array([list(LANDMARKS.values())], SINGLE))
    assert not same(-session(model, x), np.array([list(LANDMARKS.values())], SINGLE)), "the FP32 graph does not round"


@SESSIONS
@for_all(seed=range(3))
def test_every_bit_pattern_rounds_as_numpy_rounds(session, seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, (1, 20_000), dtype=np.uint64).astype(np.uint32)
    halves = np.arange(2**16, dtype=np.uint16).view(HALF).astype(SINGLE)  # every FP16 number, and the ties between them
    with np.errstate(all="ignore"):
        ties = ((halves[:-1].astype(np.float64) + halves[1:]) / 2).astype(SINGLE)
        x = np.concatenate([bits.view(SINGLE)[0], halves, ties])[None]
        g = Graph(x.shape[1])
        model = g.model(g.node("Neg", ["image"], "negate"), x.shape[1])
        assert same(-emulate(model, x, session=session), half(x))


@SESSIONS
@pytest.mark.parametrize("nodes", [1, 4])
def test_roundings_between_nodes_are_kept(session, nodes):
    x = wide(2, 500)
    model = squared(500, nodes=nodes)
    typed = type_graph(model)
    expected = reference(typed, x)
    assert same(session(emulated_graph(typed), x), expected)
    assert not same(session(model, x), expected)
    assert not same(session(typed, x), expected), "ONNX Runtime rounds typed graphs by now: is the emulation still needed?"


@pytest.mark.parametrize("operator", ["Transpose", "Reshape", "Identity", "Unsqueeze", "Slice"])
def test_roundings_survive_next_to_operators_that_only_move(operator):
    """Optimizers like to push Casts through such nodes, and to cancel what then stands side by side."""
    g = Graph(6, 4)
    inputs = {
        "Reshape": [g.store("shape", np.array([0, 4, 6], np.int64))],
        "Unsqueeze": [g.store("at", np.array([1], np.int64))],
        "Slice": [g.store(name, np.array([at], np.int64)) for name, at in (("from", 1), ("to", 3), ("on", 1))],
    }
    g.store("third", np.full(1, 1 / 3, SINGLE))
    shape = {"Transpose": (4, 6), "Reshape": (4, 6), "Unsqueeze": (1, 6, 4), "Slice": (2, 4)}.get(operator, (6, 4))
    attributes = {"perm": [0, 2, 1]} if operator == "Transpose" else {}
    moved = g.node(operator, ["image", *inputs.get(operator, [])], "move", **attributes)
    moved = g.node("Mul", [moved, "third"], "multiply")
    again = g.node("Identity", [moved], "again")
    typed = type_graph(g.model(again, *shape))
    x = wide(3, 6, 4)
    assert same(by_tapped_graph(emulated_graph(typed), x), reference(typed, x))


@pytest.mark.parametrize(("quantized", "build"), [(q, b) for q in (False, True) for b in (attention, convolutions)])
def test_optimizations_change_no_more_than_the_order_of_fp32_sums(quantized, build):
    model = build(quantized=quantized)
    x = images(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    emulated = emulated_graph(type_graph(model))
    expected, found = run(emulated, x), by_tapped_graph(emulated, x)
    assert sqnr_db(expected, found) > 70
    assert sqnr_db(expected, run(model, x)) < 70, "control: as far as the FP32 graph is"


# One node, one rounding ---------------------------------------------------------------------------------------------------


def operators():
    """name -> the graph's builder; numpy float16 rounds each of them correctly."""
    constant = half(np.clip(wide(40, seed=9), -65504, 65504))
    constant[np.abs(constant) == 0] = 1

    def unary(operator):
        return lambda g: g.node(operator, ["image"], "n")

    def binary(operator):
        return lambda g: g.node(operator, ["image", g.store("c", constant)], "n")

    def reversed_binary(operator):
        return lambda g: g.node(operator, [g.store("c", constant), "image"], "n")

    return {
        **{name: unary(name) for name in ("Abs", "Neg", "Relu", "Sqrt", "Identity")},
        **{name: binary(name) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
        **{f"{name} reversed": reversed_binary(name) for name in ("Sub", "Div")},
        "Clip": lambda g: g.node("Clip", ["image", g.store("lo", SINGLE(-0.3)), g.store("hi", SINGLE(0.1))], "n"),
        "Clip below": lambda g: g.node("Clip", ["image", g.store("lo", SINGLE(2.0**-14))], "n"),
        "Concat": lambda g: g.node("Concat", ["image", g.store("c", np.tile(constant, (3, 1)))], "n", axis=-1),
        "square": lambda g: g.node("Mul", ["image", "image"], "n"),
        "Constant": lambda g: g.node("Add", ["image", constant_node(g, np.full(1, 0.1, SINGLE))], "n"),
        "distance": lambda g: g.node(
            "Sqrt", [g.node("Add", [g.node("Abs", ["image"], "b"), g.store("c", constant)], "a")], "n"
        ),
    }


def constant_node(g, value):
    g.nodes.append(helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(value), name="k"))
    return "k"


@SESSIONS
@pytest.mark.parametrize("name", operators())
def test_agrees_with_the_reference_evaluator_to_the_bit(session, name):
    g = Graph(40)
    model = g.model(operators()[name](g), 80 if name == "Concat" else 40)
    typed = type_graph(model)
    x = wide(3, 40)
    expected = reference(typed, x)
    assert same(session(emulated_graph(typed), x), expected)
    assert not same(session(model, x), expected), "control: the FP32 graph has other numbers"


def test_constants_are_rounded_too():
    g = Graph(1)
    model = g.model(g.node("Mul", ["image", g.store("tenth", np.full(1, 0.1, SINGLE))], "m"), 1)
    assert emulate(model, np.ones((1, 1), SINGLE)) == SINGLE(HALF(0.1)) != SINGLE(0.1)


def test_layer_normalization_is_one_node_with_statistics_in_fp32():
    """Values whose squares FP16 does not hold; numpy in float64, rounded once."""
    g = Graph(32)
    g.store("gain", np.ones(32, SINGLE))
    g.store("bias", np.zeros(32, SINGLE))
    x = half(images(32) * 3000)
    found = emulate(g.model(g.node("LayerNormalization", ["image", "gain", "bias"], "ln", epsilon=1e-6), 32), x)
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
    assert same(found, half(found))
    np.testing.assert_allclose(found, expected, rtol=2.0**-10)
    assert np.abs(half(centred * centred)).max() == np.inf, "control: a decomposed one overflows"


# Reductions ---------------------------------------------------------------------------------------------------------------


def pairwise_sum(values, axis):
    """float16 -> float16: element i of the lower half plus element i of the upper one, an odd last one waits."""
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
    """Sums of whole numbers, exact; then one rounding."""
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
def test_order_of_a_pairwise_sum_is_felt(operator):
    """Control: one addition after the other gives other numbers than the tree, and so does a sum in FP32."""
    x = images(5, 48, batch=4) * 25
    model = reducer(operator, (5, 48), [-1], 1)
    found = emulate(model, x)
    with np.errstate(all="ignore"):
        one_by_one = x.astype(HALF) if operator == "ReduceSum" else np.square(x.astype(HALF))
        one_by_one = np.add.accumulate(one_by_one, axis=-1, dtype=HALF)[..., -1:]
        one_by_one = np.sqrt(one_by_one) if operator == "ReduceL2" else one_by_one
    assert not same(found, one_by_one.astype(SINGLE))
    assert not same(found, emulate(model, x, accumulate="fp32"))
    assert np.isfinite(found).all()


@REDUCERS
@for_all(length=LENGTHS, keepdims=[0, 1])
def test_sums_in_fp32_are_rounded_once(operator, length, keepdims):
    x = whole(4, 5, length, most=90)
    model = reducer(operator, (5, length), [-1], keepdims)
    assert same(emulate(model, x, accumulate="fp32"), reduce_exactly(operator, x, [-1], bool(keepdims)))


def test_squares_overflow_in_an_fp16_accumulator_alone():
    """Norms of about 360: FP16 holds them, their squares it does not."""
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
    assert not same(reduce_in_half(operator, x, [-1, -2], True), reduce_in_half(operator, x, [-2, -1], True)), "order is felt"


def test_a_reduction_in_an_island_stays_one_node():
    model = reducer("ReduceL2", (5, 48), [-1], 1)
    x = whole(4, 5, 48, most=90)
    typed = type_graph(model, keep_fp32=frozenset({"reduce"}))
    emulated = emulated_graph(typed)
    assert [n.op_type for n in emulated.graph.node if n.op_type != "Cast"].count("ReduceL2") == 1
    found = by_tapped_graph(emulated, x)
    np.testing.assert_array_max_ulp(found, np.sqrt((x.astype(np.float64) ** 2).sum(-1, keepdims=True)).astype(SINGLE), 1)
    assert not same(found, half(found))


@pytest.mark.parametrize("axes", ["absent", "computed"])
def test_a_reduction_without_fixed_axes_is_refused(axes):
    """Not summed at all, it would give numbers of the wrong shape, or of the right one by chance."""
    g = Graph(4)
    inputs = ["image"]
    if axes == "computed":
        inputs.append(g.node("Cast", [g.store("where", SINGLE([-1]))], "axes", to=TensorProto.INT64))
    out = g.node("ReduceL2", inputs, "reduce", keepdims=1)
    typed = type_graph(g.model(out, "width"))
    with pytest.raises(InputError, match=r"axes[\s\S]*reduce"):
        emulated_graph(typed)
    emulated_graph(typed, accumulate="fp32")


# Products -----------------------------------------------------------------------------------------------------------------


def product_graph(depth, rows=3, columns=4):
    """image (depth, rows + columns) -> left^T right, left (rows, depth) and right (depth, columns): two activations."""
    g = Graph(depth, rows + columns)
    for name, low, high in (("left", 0, rows), ("right", rows, rows + columns)):
        bounds = [g.store(f"{name}_{i}", np.array([v], np.int64)) for i, v in enumerate((low, high, 2))]
        g.node("Slice", ["image", *bounds], name)
    g.node("Transpose", ["left_out"], "turn", perm=[0, 2, 1])
    return g.model(g.node("MatMul", ["turn_out", "right_out"], "product"), rows, columns)


def product_in_half(x, rows=3, step=16):
    """The accumulator is an FP16 number after every `step` products, which are added to it at once."""
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
    found = emulate(product_graph(depth), x, accumulate="fp32")
    assert same(found, half(exact.astype(SINGLE)))
    assert same(emulate(product_graph(depth), x), found) == (depth <= 16)
    if depth > 16:
        assert not same(product_in_half(x, step=8), product_in_half(x)), "control: another depth of the step is seen"


def test_an_accumulator_that_overflows_on_the_way_stays_infinite():
    """32 products of 4096 fill FP16 twice, 32 of -4096 take them away again: 0 in FP32."""
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
    found = emulate(model, x, accumulate=accumulate)
    assert same(found, half(exact.astype(SINGLE)))
    assert not same(found, exact.astype(SINGLE)), "control: the rounding is seen"


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
    with pytest.raises(InputError, match=r"length of a summed axis is not fixed[\s\S]*image/fp16, axis -1"):
        emulated_graph(typed)
    assert np.isfinite(by_tapped_graph(emulated_graph(typed, accumulate="fp32"), x)).all()
    assert np.isfinite(emulate(model, x, keep=frozenset({"sum"}))).all(), "an island is not summed in FP16"


# What the emulation is for ------------------------------------------------------------------------------------------------


def xnorm(axis=-1, length=48):
    g = Graph(2, 5, length) if axis == -1 else Graph(2, length, 5)
    norm = g.node("ReduceL2", ["image", g.store("axes", np.array([axis], np.int64))], "norm", keepdims=1)
    clamp = g.node("Clip", [norm, g.store("eps", np.array(2.0**-14, SINGLE))], "clamp")
    return g.model(g.node("Div", ["image", clamp], "divide"), *g.shape)


XNORM_ISLAND = frozenset({"norm", "clamp", "divide"})


@SESSIONS
@for_all(axis=[-1, -2])
def test_overflow_of_an_xnorm_shows_here_and_nowhere_else(session, axis):
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
    # Why it exists: ONNX Runtime computes the same typed graph in FP32, and shows nothing.
    np.testing.assert_allclose(session(typed, x), exact, rtol=2.0**-9)


@SESSIONS
def test_underflow_of_an_xnorm_shows_here_and_nowhere_else(session):
    """Squares of 2^-13 are zero in FP16, their norm is, and the clamp makes of a unit vector one that is far too short."""
    x = np.full((1, 2, 5, 48), 2.0**-13, SINGLE)
    assert same(emulate(xnorm(), x, session=session), np.full_like(x, 2))
    exact = np.full_like(x, 48**-0.5)
    np.testing.assert_allclose(session(type_graph(xnorm()), x), exact, rtol=2.0**-9)
    np.testing.assert_allclose(emulate(xnorm(), x, keep=XNORM_ISLAND, session=session), exact, rtol=2.0**-10)


def test_an_island_does_not_round():
    """(x / 3) * 3 + 2^-12 in FP32; the nodes around it in FP16, as the reference evaluator has it."""
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
    found = emulate(model, x, keep=keep, accumulate=accumulate)
    assert FP16_SQNR_DB < sqnr_db(run(model, x), found) < 90, "near, and yet not the same"
    assert sqnr_db(run(model, x), 2 * found) < 10


# Q/DQ ---------------------------------------------------------------------------------------------------------------------

STEP = 3.0 / 64  # of activations; exact in FP16, as the typed graph wants it


def quantized_layer(operator, axis_name="own"):
    """One INT8 layer, 16 -> 16, whose output channels differ by up to 2^15 in scale: an axis taken for another shows."""
    shape = {"MatMul": (16, 16), "Gemm": (16,), "Conv": (16, 4, 4)}[operator]
    g = Graph(*shape)
    axis = {"MatMul": 1, "Gemm": 0, "Conv": 0}[operator]
    weight = (
        g.random.uniform(0.5, 1, (16, 16))
        * np.exp2(np.arange(16) - 9.0)[None if axis else slice(None), ..., None if not axis else slice(None)]
    )
    weight = weight.reshape(16, 16)
    g.store("w", (weight[..., None, None] if operator == "Conv" else weight).astype(SINGLE))
    operands = [g.pair("image", STEP), g.int8_weight("w", axis)]
    if axis_name != "own":
        other = next(n for n in g.nodes if n.name == "w/DQ")
        value = {"negative": axis - g.weights["w_q"].ndim, "other": 1 - axis, "default": None}[axis_name]
        del other.attribute[:]
        if value is not None:
            other.attribute.append(helper.make_attribute("axis", value))
    attributes = {"transB": 1} if operator == "Gemm" else {}
    return g.model(g.node(operator, operands, "layer", **attributes), *shape)


@SESSIONS
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv"])
def test_an_int8_layer_is_exact_and_rounded_once(session, operator):
    model = quantized_layer(operator)
    x = half(images(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])))
    expected = run(model, x)
    found = emulate(model, x, session=session)
    assert same(found, half(found))
    np.testing.assert_allclose(
        found, expected, rtol=2.0**-11 + 2.0**-18, atol=2.0**-24
    )  # one rounding, and the order of the sum
    assert not same(found, expected)
    other = run(quantized_layer(operator, "other"), x)
    assert np.abs(other / expected - 1).max() > 1, "control: scales along the other axis"


def test_axes_of_weight_scales_however_they_are_written():
    x = half(images(16, 16))
    expected = emulate(quantized_layer("MatMul"), x)
    for axis in ("negative", "default"):
        assert same(emulate(quantized_layer("MatMul", axis), x), expected)
    found = emulate(quantized_layer("MatMul", "other"), x)
    np.testing.assert_allclose(found, run(quantized_layer("MatMul", "other"), x), rtol=2.0**-10, atol=2.0**-24)
    assert not same(found, expected)


@pytest.mark.parametrize("quantize", ["per channel", "per tensor", "one channel in a vector"])
def test_weights_become_the_constants_that_dequantize_linear_gives(quantize):
    g = Graph(8)
    scale = {
        "per channel": half(np.array([0.01, 0.3, 5.0], SINGLE)),
        "per tensor": half(SINGLE(0.01)),
        "one channel in a vector": half(np.array([0.01], SINGLE)),
    }[quantize]
    codes = np.random.default_rng(0).integers(-127, 128, (8, 3)).astype(np.int8)
    inputs = [g.store("codes", codes), g.store("scale", scale), g.store("zero", np.zeros(scale.shape, np.int8))]
    weight = g.node("DequantizeLinear", inputs, "w/DQ", **({"axis": 1} if scale.ndim else {}))
    emulated = emulated_graph(type_graph(g.model(g.node("MatMul", [g.pair("image", STEP), weight], "layer"), 3)))
    stored = {t.name: numpy_helper.to_array(t) for t in emulated.graph.initializer}
    assert same(stored["w/DQ_out"], codes.astype(SINGLE) * scale)
    assert [n.name for n in emulated.graph.node if n.op_type == "DequantizeLinear"] == ["image/DQ"]


@pytest.mark.parametrize("zero", [3, -128])
def test_a_zero_point_of_weights_is_taken_off(zero):
    """The toolkit writes none, but a graph that has one must not be computed without."""
    g = Graph(16)
    codes = np.random.default_rng(0).integers(-100, 100, (16, 3)).astype(np.int8)
    inputs = [g.store("codes", codes), g.store("scale", np.array(STEP, SINGLE)), g.store("zero", np.array(zero, np.int8))]
    model = g.model(g.node("MatMul", [g.pair("image", STEP), g.node("DequantizeLinear", inputs, "w/DQ")], "layer"), 3)
    x = half(images(16))
    np.testing.assert_allclose(emulate(model, x), run(model, x), rtol=2.0**-10)
    inputs[2] = g.store("zero", np.zeros((), np.int8))
    assert np.abs(run(g.model("layer_out", 3), x) - run(model, x)).max() > 0.2, "control: the zero-point matters"


def test_operands_of_an_int8_layer_are_exact_and_others_are_rounded():
    """STEP = 3/64 times a code up to 127 needs 9 bits, 1.33 (11 bits) times it up to 18."""
    g = Graph(16)
    step = float(half(1.33 / 64))
    layer = g.node("MatMul", [g.pair("image", step), g.int8_weight(g.weight("w", 16, 16), 1)], "layer")
    again = g.pair(layer, step)
    model = g.model(g.node("Neg", [again], "other"), 16)
    emulated = emulated_graph(type_graph(model))
    x = images(16)
    names = ("image/Q_out", "image/DQ_out", "layer_out/Q_out", "layer_out/DQ_out")
    code, value, code_again, value_again = TappedGraph(emulated, names)(x).values()
    assert code.dtype == code_again.dtype == np.int8
    assert same(value, code.astype(SINGLE) * SINGLE(step))
    assert same(value_again, half(code_again.astype(SINGLE) * SINGLE(step)))
    assert not same(value, half(value)), "control: a rounding would be seen"
    assert not same(value_again, code_again.astype(SINGLE) * SINGLE(step))


def test_a_product_of_two_quantized_activations_is_summed_in_int32():
    g = Graph(48, 16)
    pair = g.pair("image", float(half(1.33 / 64)))
    turned = g.pair(g.node("Transpose", ["image"], "turn", perm=[0, 2, 1]), float(half(1.7 / 64)))
    model = g.model(g.node("MatMul", [turned, pair], "product"), 16, 16)
    x = half(images(48, 16))
    found = emulate(model, x)
    np.testing.assert_allclose(found, run(model, x), rtol=2.0**-11 + 2.0**-18, atol=2.0**-15)
    without = emulate(product_graph(48), np.concatenate([x[..., :3], x[..., :4]], -1))
    assert np.abs(without - run(model, x)[:, :3, :4]).max() > 0.02, "control: without Q/DQ"


@pytest.mark.parametrize("island", [frozenset(), ISLAND])
@pytest.mark.parametrize(("build", "shape"), [(attention, (8, 16)), (convolutions, (8, 12, 12))])
def test_quantized_networks_stay_near_onnx_runtime_in_fp32(build, shape, island):
    model = build(quantized=True)
    x = images(*shape)
    keep = frozenset(island & {n.name for n in model.graph.node})
    found = emulate(model, x, keep=keep)
    assert sqnr_db(run(model, x), found) > 30  # a code at a rounding border may fall to the other side: one step of 127
    assert sqnr_db(run(model, x), 2 * found) < 10
    if build is attention:  # the networks themselves agree less well with their float originals
        assert sqnr_db(run(model, x), found) > sqnr_db(run(build(), x), found)


# The graph itself ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", ["fp16", "fp32"])
@pytest.mark.parametrize("island", [frozenset(), ISLAND])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("build", [attention, convolutions])
def test_a_valid_fp32_graph_with_the_same_ports(build, quantized, island, accumulate):
    model = build(quantized=quantized)
    typed = type_graph(model, keep_fp32=frozenset(island & {n.name for n in model.graph.node}))
    before = typed.SerializeToString(deterministic=True)
    first, second = (emulated_graph(typed, accumulate=accumulate).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert typed.SerializeToString(deterministic=True) == before, "the typed graph is left as it is"
    emulated = onnx.load_model_from_string(first)
    onnx.checker.check_model(emulated, full_check=True)
    assert list(emulated.graph.input) == list(model.graph.input)
    assert list(emulated.graph.output) == list(model.graph.output)
    names = [n.name for n in emulated.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    inferred = onnx.shape_inference.infer_shapes(emulated, strict_mode=True).graph
    halves = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    assert halves
    for node in emulated.graph.node:  # FP16 lives between the two Casts of a pair and nowhere else
        assert node.op_type == "Cast" or not halves & {*node.input, *node.output}
    assert not [t.name for t in emulated.graph.initializer if t.data_type == TensorProto.FLOAT16]


def test_the_two_accumulators_are_two_graphs():
    typed = type_graph(attention())
    assert emulated_graph(typed) == emulated_graph(typed, accumulate="fp16") != emulated_graph(typed, accumulate="fp32")
