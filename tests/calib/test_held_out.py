"""Oracles: sets of image numbers, and SQNR written down in numpy on outputs of the whole graphs."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.held_out import HeldOut, Judge, batch_of


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
    assert len(blocks) == 1 or np.ptp(np.diff(blocks[:, 0])) <= 4, "evenly spaced, to a block"
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


def two_outputs(make_model, factors=(1.0, 1.0)):
    """Logits and a map; the factors scale them."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["logits"]),
        h.make_node("Mul", ["x", "m"], ["map"]),
    ]
    weight = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    constants = {"w": weight * np.float32(factors[0]), "m": np.float32(factors[1])}
    outputs = [("logits", T.FLOAT, ["n", 3]), ("map", T.FLOAT, ["n", 4])]
    return make_model(nodes, constants, [("x", T.FLOAT, ["n", 4])], outputs)


@pytest.fixture
def batches():
    return np.split(np.random.default_rng(2).normal(size=(12, 4)).astype(np.float32), 3)


def test_the_worst_output_counts(make_model, batches):
    judge = Judge(two_outputs(make_model), batches, 1)
    assert judge.decibels(two_outputs(make_model)) == 300
    for factors in ((1.01, 1.1), (1.1, 1.01)):
        found = judge.decibels(two_outputs(make_model, factors))
        assert found == pytest.approx(20, abs=1e-3), "an error of a tenth, in either output"
    assert judge.decibels(two_outputs(make_model, (-1.0, 1.0))) == pytest.approx(-6.02, abs=0.01), "a sign"
    assert judge.decibels(two_outputs(make_model, (np.nan, 1.0))) == -300


def peaks(make_model, factor):
    """A map (8, 5000) that is zero except at one element of every row, another for each row; the factor scales half of them."""
    rows, width = 8, 5000
    mask = np.zeros((rows, width), np.float32)
    mask[np.arange(rows), 7 + 601 * np.arange(rows)] = np.where(np.arange(rows) % 2, factor, 1)
    node = h.make_node("Mul", ["x", "m"], ["y"])
    return make_model([node], {"m": mask}, [("x", T.FLOAT, ["n", rows, 1])], [("y", T.FLOAT, ["n", rows, width])])


@pytest.mark.parametrize("factor", [1.1, 1.2, 0.0, -1.0])
def test_peaks_of_a_large_output_are_all_compared(make_model, factor):
    x = np.random.default_rng(3).normal(size=(4, 8, 1)).astype(np.float32)
    judge = Judge(peaks(make_model, 1.0), [x], 1)
    assert judge.decibels(peaks(make_model, 1.0)) == 300
    noise = np.sum(np.square((factor - 1) * x[:, 1::2], dtype=np.float64))
    expected = 10 * np.log10(np.sum(np.square(x, dtype=np.float64)) / noise)
    assert judge.decibels(peaks(make_model, factor)) == pytest.approx(expected, abs=1e-3)


def test_a_dense_map_is_compared_without_bias(make_model):
    rng = np.random.default_rng(4)
    size, error = 200_000, rng.normal(size=200_000).astype(np.float32) * np.float32(0.1)

    def scaled(factors):
        node = h.make_node("Mul", ["x", "m"], ["y"])
        return make_model([node], {"m": factors}, [("x", T.FLOAT, ["n", size])], [("y", T.FLOAT, ["n", size])])

    x = np.float32(1) + rng.normal(size=(2, size)).astype(np.float32)
    ones = np.ones(size, np.float32)
    expected = 10 * np.log10(np.sum(x.astype(np.float64) ** 2) / np.sum((x * error.astype(np.float64)) ** 2))
    judge = Judge(scaled(ones), [x], 1)
    assert judge.decibels(scaled(ones + error)) == pytest.approx(expected, abs=0.1)
    assert judge.decibels(scaled(ones + 2 * error)) == pytest.approx(expected - 6.02, abs=0.1)


def test_the_median_counts_every_image_alike(make_model):
    """One image of two hundred times the amplitude: overall it is all there is, in the median one of five."""
    nodes = [h.make_node("Clip", ["x", "", "most"], ["y"])]

    def clipping(most):
        constants = {"most": np.float32(most)}
        return make_model(nodes, constants, [("x", T.FLOAT, ["n", 4])], [("y", T.FLOAT, ["n", 4])])

    images = np.ones((5, 4), np.float32)
    images[3] = 200
    judge = Judge(clipping(1e3), [images[:2], images[2:]], 1)
    kept, clipped = judge.figures(clipping(1e3)), judge.figures(clipping(100.0))
    assert (kept.overall_db, kept.median_db, kept.weighted_db) == (300, 300, 300)
    exact = 10 * np.log10((4 * 4 + 4 * 200**2) / (4 * 100**2))
    assert (clipped.overall_db, clipped.median_db) == (pytest.approx(exact), 300)
    assert judge.figures(clipping(0.5)).median_db == pytest.approx(20 * np.log10(2)), "the control: every image is clipped"
