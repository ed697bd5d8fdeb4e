"""Oracles: sets of image numbers, and SQNR written down in numpy on outputs of the whole graphs."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.held_out import HeldOut, Judge, Noise, batch_of


def numbered(count, size):
    """Batches of images whose only value is their number."""
    every = np.arange(count, dtype=np.float32)[:, None]
    return [every[i : i + size] for i in range(0, count, size)]


@pytest.mark.parametrize(("count", "size"), [(16, 16), (32, 16), (48, 16), (252, 11), (500, 7), (512, 32)])
def test_a_part_is_held_out_in_blocks_over_all_images(count, size):
    held = HeldOut(count)
    given = list(held.keep(numbered(count, size)))
    assert [b.tolist() for b in given] == [b.tolist() for b in numbered(count, size)], "all images pass"
    kept = np.concatenate(held.batches).ravel()
    others = np.concatenate(list(held.others(numbered(count, size)))).ravel()
    assert sorted([*kept, *others]) == list(range(count)), "each image is on one side"
    assert len(kept) == {16: 4, 32: 8, 48: 12, 252: 28, 500: 60, 512: 64}[count]
    blocks = kept.reshape(-1, 4)
    assert np.all(np.diff(blocks, axis=1) == 1)
    assert len(set(np.diff(blocks[:, 0]))) <= 1, "evenly spaced"
    regrouped = HeldOut(count)
    list(regrouped.keep(numbered(count, 5)))
    np.testing.assert_array_equal(np.concatenate(regrouped.batches).ravel(), kept)


def test_few_images_are_not_divided_and_many_bytes_hold_out_fewer(monkeypatch):
    few = HeldOut(15)
    assert [len(b) for b in few.others(numbered(15, 5))] == [5, 5, 5]
    list(few.keep(numbered(15, 5)))
    assert few.batches == []
    monkeypatch.setattr("calib.held_out.LARGEST_BYTES", 4 * 9)
    many = HeldOut(512)
    list(many.keep(numbered(512, 16)))
    assert sum(map(len, many.batches)) == 8


def test_a_fixed_batch_is_held_out_as_a_whole(make_model):
    def one(batch):
        node = h.make_node("Relu", ["x"], ["y"])
        return make_model([node], {}, [("x", T.FLOAT, [batch, 2])], [("y", T.FLOAT, [batch, 2])])

    assert [batch_of(one(b)) for b in (16, "n")] == [16, None]
    held = HeldOut(48, 16)
    list(held.keep(numbered(48, 16)))
    assert [len(b) for b in [*held.batches, *held.others(numbered(48, 16))]] == [16, 16, 16]


def two_outputs(make_model, factors=(1.0, 1.0), offset=0.0):
    """Logits and a map; the factors scale them, the offset is added to the logits."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("Add", ["a", "b"], ["logits"]),
        h.make_node("Mul", ["x", "m"], ["map"]),
    ]
    weight = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    constants = {"w": weight * np.float32(factors[0]), "b": np.float32([offset] * 3), "m": np.float32(factors[1])}
    outputs = [("logits", T.FLOAT, ["n", 3]), ("map", T.FLOAT, ["n", 4])]
    return make_model(nodes, constants, [("x", T.FLOAT, ["n", 4])], outputs)


@pytest.fixture
def batches():
    return np.split(np.random.default_rng(2).normal(size=(12, 4)).astype(np.float32), 3)


def test_the_worst_output_counts(make_model, batches):
    judge = Judge(two_outputs(make_model), batches, 1)
    assert judge.measure(two_outputs(make_model)).decibels == 300
    for factors in ((1.01, 1.1), (1.1, 1.01)):
        found = judge.measure(two_outputs(make_model, factors))
        assert found.decibels == pytest.approx(20, abs=1e-3), "an error of a tenth, in either output"
        assert found.per_image.sum() == pytest.approx(0.01 + 0.0001, rel=1e-3)
    assert judge.measure(two_outputs(make_model, (-1.0, 1.0))).decibels == pytest.approx(-6.02, abs=0.01), "a sign"
    assert judge.measure(two_outputs(make_model, (np.nan, 1.0))).decibels == -300


def test_a_constant_error_is_left_out_where_a_bias_takes_it_back(make_model, batches):
    judge = Judge(two_outputs(make_model), batches, 1)
    shifted = two_outputs(make_model, offset=1.0)
    assert judge.measure(shifted).decibels < 10
    assert judge.measure(shifted, centred=True).decibels > 120
    assert judge.measure(two_outputs(make_model, (1.1, 1.0)), centred=True).decibels < 25, "the control: no constant"


def test_chance_is_not_a_clear_difference():
    random = np.random.default_rng(3)
    noise = random.uniform(1, 2, size=32)
    other = Noise(20.0, noise)
    assert Noise(21.0, 0.8 * noise).clearly_below(other)
    assert not Noise(21.0, random.permutation(noise) * 0.99).clearly_below(other)
    assert not Noise(20.0, 0.8 * noise).clearly_below(other), "the worst output is no better"
    assert not Noise(21.0, np.full(32, np.nan)).clearly_below(other)
    assert not Noise(21.0, noise[:1] / 2).clearly_below(Noise(20.0, noise[:1])), "one image tells nothing"
