"""Operators with statistics, written out with every rounding of FP16. Oracles: numpy float16 in loops written here, float64."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from engine_graphs import Graph, images
from fp16_reference import HALF, SINGLE, by_tapped_graph, half, run_float, same, sqnr_db

from calib.errors import GraphError
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph


@dataclass(frozen=True)
class Told:
    """A target that computes these operators' elements and sums as told, every other one in FP16."""

    wide_elements: frozenset[str] = frozenset()
    wide_sums: frozenset[str] = frozenset()
    asked: set[str] = field(default_factory=set)

    def elements(self, operator):
        self.asked.add(operator)
        return "fp32" if operator in self.wide_elements else "fp16"

    def sums(self, operator):
        return "fp32" if operator in self.wide_sums else "fp16"


ALL_HALF = Told()


def emulate(model, x, told=ALL_HALF, **options):
    return by_tapped_graph(emulated_graph(type_graph(model), precisions=told, **options), x)


def total(values):
    """float16 (..., n) -> (..., 1): the lower half plus the upper half, an odd last element waits."""
    while values.shape[-1] > 1:
        middle = values.shape[-1] // 2
        sums = values[..., :middle] + values[..., middle : 2 * middle]
        values = np.concatenate([sums, values[..., 2 * middle :]], axis=-1)
    return values


def total_of(values, axis):
    return np.moveaxis(total(np.moveaxis(values, axis, -1)), -1, axis)


def mean(values):
    return total(values) / HALF(values.shape[-1])


def softmax(x):
    e = np.exp((x - x.max(-1, keepdims=True)).astype(SINGLE)).astype(HALF)
    return e / total(e)


def normalised(x, eps):
    d = x - mean(x)
    return d / np.sqrt(mean(d * d) + HALF(eps))


def logarithm(x):
    return np.log(x.astype(SINGLE)).astype(HALF)


def log_sum_exp(x):
    m = x.max(-1, keepdims=True)
    return m + logarithm(total(np.exp((x - m).astype(SINGLE)).astype(HALF)))


GAIN, SHIFT = half(np.linspace(0.5, 1.5, 6)), half(np.linspace(-1, 1, 6))
LAST = {
    "ReduceSum": total,
    "ReduceMean": mean,
    "ReduceL1": lambda x: total(np.abs(x)),
    "ReduceL2": lambda x: np.sqrt(total(x * x)),
    "ReduceSumSquare": lambda x: total(x * x),
    "ReduceLogSumExp": log_sum_exp,
    "Softmax": softmax,
    "LogSoftmax": lambda x: logarithm(softmax(x)),
    "LpNormalization": lambda x: x / np.sqrt(total(x * x)),
}
"""Over the last axis of float16 (B, 6, 5, 7)."""


def channels(x):
    """InstanceNormalization of float16 (B, 6, 5, 7)."""
    unit = normalised(x.reshape(len(x), 6, 35), 1e-3).reshape(x.shape)
    return unit * GAIN.astype(HALF)[:, None, None] + SHIFT.astype(HALF)[:, None, None]


def groups(x):
    unit = normalised(x.reshape(len(x), 2, 105), 1e-3).reshape(x.shape)
    return unit * GAIN.astype(HALF)[:, None, None] + SHIFT.astype(HALF)[:, None, None]


EXPECTED = {
    **LAST,
    "InstanceNormalization": channels,
    "GroupNormalization": groups,
    "GlobalAveragePool": lambda x: total(total_of(x, 2)) / HALF(35),
}


def one_operator(operator):
    """(6, 5, 7) -> the operator, over the last axis where it has one."""
    g = Graph(6, 5, 7, opset=21 if operator == "GroupNormalization" else 20)
    inputs, attributes, shape = ["image"], {}, (6, 5, 7)
    if operator.startswith("Reduce"):
        inputs.append(g.store("axes", np.array([-1], np.int64)))
        shape = (6, 5, 1)
    elif operator in ("InstanceNormalization", "GroupNormalization"):
        inputs += [g.store("gain", GAIN), g.store("shift", SHIFT)]
        attributes = {"epsilon": 1e-3, **({"num_groups": 2} if operator == "GroupNormalization" else {})}
    elif operator == "GlobalAveragePool":
        shape = (6, 1, 1)
    return g.model(g.node(operator, inputs, "node", **attributes), *shape)


@pytest.mark.parametrize("operator", EXPECTED)
def test_statistics_in_fp16_round_at_every_step(operator):
    x = half(images(6, 5, 7, batch=2) * 3)
    with np.errstate(all="ignore"):
        expected = EXPECTED[operator](x.astype(HALF)).astype(SINGLE)
    result = emulate(one_operator(operator), x)
    if operator in ("Softmax", "LogSoftmax", "ReduceLogSumExp"):  # exp and log of two libraries differ in their last digit
        np.testing.assert_allclose(result, expected, rtol=2.0**-9, atol=2.0**-10)
    else:
        assert same(result, expected)
    assert not same(result, emulate(one_operator(operator), x, accumulate="fp32")), "control: sums in FP32 have other values"


@pytest.mark.parametrize("operator", EXPECTED)
def test_statistics_in_fp32_round_once(operator):
    told = Told(frozenset({operator}), frozenset({operator}))
    x = half(images(6, 5, 7, batch=2) * 3)
    result = emulate(one_operator(operator), x, told)
    assert same(result, half(run_float(one_operator(operator), x)))
    assert operator in told.asked


@pytest.mark.parametrize("operator", ["InstanceNormalization", "GroupNormalization", "LpNormalization"])
def test_long_vectors_destroy_a_norm_only_in_fp16(operator):
    """Magnitudes of hundreds, whose squares are beyond FP16; a wide accumulator does not help."""
    model, x = one_operator(operator), half(images(6, 5, 7, batch=2) * 900)
    exact = run_float(model, x)
    assert sqnr_db(exact, emulate(model, x, Told(frozenset({operator}), frozenset({operator})))) > 50
    for told in (ALL_HALF, Told(wide_sums=frozenset({operator}))):
        result = emulate(model, x, told)
        assert not np.isfinite(result).all() or sqnr_db(exact, result) < 10


def test_squares_and_their_sum_are_told_apart():
    """256 squares of 100^2: each fits, their sum does not; squares of 300^2 do not."""
    g = Graph(256)
    model = g.model(g.node("ReduceL2", ["image", g.store("axes", np.array([-1], np.int64))], "node"), 1)
    fits, beyond = (np.full((1, 256), value, SINGLE) for value in (100, 300))
    wide_sums = Told(wide_sums=frozenset({"ReduceL2"}))
    assert emulate(model, fits) == np.inf
    assert emulate(model, fits, wide_sums) == np.inf, "the sum is stored in FP16"
    assert emulate(model, fits / 8, wide_sums) == 200
    assert emulate(model, beyond, Told(frozenset({"ReduceL2"}), frozenset({"ReduceL2"}))) == 4800


def test_a_reduction_without_axes_takes_all():
    g = Graph(3, 7)
    model = g.model(g.node("ReduceMean", ["image"], "node"), 1, 1)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    x = half(images(3, 7, batch=2))
    expected = total(total_of(total_of(x.astype(HALF), 0), 1)) / HALF(42)
    assert same(emulate(model, x), expected.astype(SINGLE))


def test_a_free_axis_is_summed_only_in_fp32():
    g = Graph("tokens")
    model = g.model(g.node("ReduceMean", ["image", g.store("axes", np.array([1], np.int64))], "node"), 1)
    with pytest.raises(GraphError, match="not fixed"):
        emulate(model, images(7, batch=2))
    wide = Told(frozenset({"ReduceMean"}), frozenset({"ReduceMean"}))
    assert np.isfinite(emulate(model, images(7, batch=2), wide)).all()


class Silent:
    """A target that tells nothing."""

    def elements(self, _operator):
        return "not told"

    sums = elements


@pytest.mark.parametrize("operator", EXPECTED)
def test_what_is_not_told_is_as_without_a_table(operator):
    model, x = one_operator(operator), half(images(6, 5, 7, batch=2) * 3)
    narrow = operator in ("ReduceL2", "ReduceSum", "ReduceSumSquare")
    assert same(
        emulate(model, x, Silent()), emulate(model, x, ALL_HALF if narrow else None, accumulate="fp16" if narrow else "fp32")
    )
    assert same(emulate(model, x, Silent()), emulate(model, x, None))


def test_products_follow_the_table_too():
    g = Graph(2, 40)
    g.node("Transpose", ["image"], "turn", perm=[0, 2, 1])
    model = g.model(g.node("MatMul", ["image", "turn_out"], "product"), 2, 2)
    x = images(2, 40, batch=3) * 3
    assert same(emulate(model, x, Told(wide_sums=frozenset({"MatMul"}))), emulate(model, x, accumulate="fp32"))
    assert not same(emulate(model, x), emulate(model, x, accumulate="fp32"))
