"""emulated_graph. Oracles: numpy float16 (IEEE 754 binary16, every operation correctly rounded) in loops written here, onnx's
reference evaluator with numpy float16 on the *typed* graph, and ONNX Runtime on the FP32 graph. Sums are over values that FP32
adds exactly, so that results are compared bit by bit, independently of the order of an FP32 sum.
"""

import numpy as np
import pytest
from engine_graphs import Graph, attention, convolutions, images, run
from for_all import for_all
from fp16_reference import FP16_SQNR_DB, HALF, SESSIONS, SINGLE, by_tapped_graph, emulate, half, reference, same, sqnr_db, wide
from onnx import helper, numpy_helper

from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph


def squared(n=1, *, nodes=1):
    """(n,) -> its values times 1/2 times 2, `nodes` times: FP16 nodes that change values only by rounding."""
    g = Graph(n)
    g.store("two", np.full(1, 2, SINGLE))
    out = "image"
    for i in range(nodes):
        g.store(f"half{i}", np.full(1, 0.5, SINGLE))
        out = g.node("Mul", [g.node("Mul", [out, f"half{i}"], f"halve{i}"), "two"], f"double{i}")
    return g.model(out, n)


def test_comparators_detect_damage():
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
    assert not same(session(typed, x), expected), "ONNX Runtime rounds typed graphs: is the emulation still needed?"


@pytest.mark.parametrize("operator", ["Transpose", "Reshape", "Identity", "Unsqueeze", "Slice"])
def test_roundings_survive_next_to_data_movement(operator):
    """Optimizers may move Casts through such nodes and then cancel adjacent ones."""
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
def test_optimizations_change_only_the_order_of_fp32_sums(quantized, build):
    model = build(quantized=quantized)
    x = images(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    emulated = emulated_graph(type_graph(model))
    expected, result = run(emulated, x), by_tapped_graph(emulated, x)
    assert sqnr_db(expected, result) > 70
    assert sqnr_db(expected, run(model, x)) < 70, "control: the FP32 graph differs more"


def operators():
    """Operator -> function that adds it to a graph; numpy float16 rounds each of them correctly."""
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
    assert not same(session(model, x), expected), "control: the FP32 graph has other values"


def test_constants_are_rounded_too():
    g = Graph(1)
    model = g.model(g.node("Mul", ["image", g.store("tenth", np.full(1, 0.1, SINGLE))], "m"), 1)
    assert emulate(model, np.ones((1, 1), SINGLE)) == SINGLE(HALF(0.1)) != SINGLE(0.1)


def test_layer_normalization_is_one_node_with_statistics_in_fp32():
    """Values whose squares overflow FP16. Oracle: numpy in float64, rounded once."""
    g = Graph(32)
    g.store("gain", np.ones(32, SINGLE))
    g.store("bias", np.zeros(32, SINGLE))
    x = half(images(32) * 3000)
    result = emulate(g.model(g.node("LayerNormalization", ["image", "gain", "bias"], "ln", epsilon=1e-6), 32), x)
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
    assert same(result, half(result))
    np.testing.assert_allclose(result, expected, rtol=2.0**-10)
    assert np.abs(half(centred * centred)).max() == np.inf, "control: a decomposed LayerNormalization overflows"
