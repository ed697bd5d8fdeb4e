"""Outputs that are too large to keep: measured batch by batch, stored as figures, judged as those that are kept.

Oracle: the same outputs kept whole, whose figures `test_tensors` compares with float64 by hand. Negative controls: every
array of the file spoiled.
"""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from calib.errors import ArtifactError, DataError
from edge.tasks.constant_outputs import SAME, ZERO
from edge.tasks.gate_row import Tolerance
from edge.tasks.registry import load_task
from edge.tasks.task import GateRequest, Sides
from edge.tasks.tensors import task as tensors_task
from edge.tasks.tensors.measured_output import MeasuredSides, measure_batches, measure_sides
from engines.layer_records import TensorInfo

N = 40
INFOS = (
    TensorInfo("map", (-1, 3, 6, 5), "float32"),
    TensorInfo("ids", (-1, 7), "int64"),
    TensorInfo("zero", (-1, 2), "float32"),
    TensorInfo("same", (-1, 4), "float32"),
    TensorInfo("same_in_batches", (-1, 4), "float32"),
)
NAMES = tuple(info.name for info in INFOS)
TASK = load_task("tensors", (), INFOS)
RNG = np.random.default_rng(11)
REFERENCE = (
    RNG.normal(size=(N, 3, 6, 5)).astype(np.float32),
    RNG.integers(0, 9, (N, 7)),
    np.zeros((N, 2), np.float32),
    np.repeat(RNG.normal(size=(1, 4)).astype(np.float32), N, axis=0),
    np.repeat(RNG.normal(size=(8, 4)).astype(np.float32), N // 8, axis=0),
)
ENGINE = tuple(
    side + (RNG.random(side.shape) > 0.9 if side.dtype.kind == "i" else RNG.normal(0, 0.05, side.shape)).astype(side.dtype)
    for side in REFERENCE
)
ENGINE[0][3, 0, 0, 0], ENGINE[3][9, 1] = np.nan, np.inf
KEPT = Sides(REFERENCE, ENGINE)


def batches(size, sides=KEPT):
    for start in range(0, N, size):
        yield tuple(tuple(output[start : start + size] for output in side) for side in (sides.reference, sides.engine))


@pytest.mark.parametrize("size", [1, 5, 16, N])
def test_figures_are_those_of_outputs_that_are_kept_to_the_last_bit(size):
    measured = measure_batches(batches(size), NAMES)
    whole = TASK.compare(KEPT)
    assert [output.constant for output in whole.outputs] == ["", "", ZERO, SAME, ""]
    assert whole.not_finite == 2
    assert TASK.compare(measured) == whole
    assert TASK.worst(measured).tolist() == TASK.worst(KEPT).tolist()
    assert TASK.record(whole, measured) == TASK.record(whole, KEPT)
    assert TASK.misfit(measured, N) == TASK.misfit(KEPT, N) == ""
    request = GateRequest(
        TASK.record(whole, KEPT), N, np.arange(N), TASK.record(whole, measured), measured,
        {quantity: Tolerance(0.0, "exact") for quantity in TASK.quantities}, random_weights=False,
    )  # fmt: skip
    assert list(TASK.gate_rows(request)) == list(TASK.gate_rows(replace(request, sides=KEPT)))


def test_what_was_measured_is_written_and_read_back(tmp_path):
    path, measured = tmp_path / "logits.npz", measure_batches(batches(7), NAMES)
    TASK.write_answers(path, measured)
    read = TASK.parse_answers(path.read_bytes(), path)
    assert isinstance(read, MeasuredSides)
    assert TASK.compare(read) == TASK.compare(KEPT)
    assert path.stat().st_size < 20 * N * 7 * 8
    assert "40" in TASK.misfit(read, N + 1)
    assert "4 outputs" in TASK.misfit(replace(read, measured=read.measured[:4]), N)
    first = replace(read.measured[0], shape=(N, 3, 6, 6))
    assert "'map'" in TASK.misfit(replace(read, measured=(first, *read.measured[1:])), N)


def spoiled(row, value):
    def spoil(arrays):
        arrays["images_0"][row, 2] = value

    return spoil


SPOILED = {
    "negative signal": spoiled(0, -1.0),
    "negative noise": spoiled(1, -1.0),
    "NaN": spoiled(1, np.nan),
    "cosine beyond 1": spoiled(2, 1.1),
    "negative difference": spoiled(3, -1.0),
    "half finite": spoiled(4, 0.5),
    "negative length": spoiled(6, -1.0),
    "float32": lambda arrays: arrays.update(images_0=arrays["images_0"].astype(np.float32)),
    "a row less": lambda arrays: arrays.update(images_0=arrays["images_0"][:6]),
    "an image less": lambda arrays: arrays.update(images_0=arrays["images_0"][:, 1:]),
    "fewer images of one output": lambda arrays: arrays.update(
        images_1=arrays["images_1"][:, 1:], output_1=np.array([1, 0, N - 1, 7])
    ),
    "no output": lambda arrays: arrays.pop("output_0"),
    "no images of an output": lambda arrays: arrays.pop("images_1"),
    "unknown constant": lambda arrays: arrays["output_0"].__setitem__(1, 3),
    "unknown kind": lambda arrays: arrays["output_0"].__setitem__(0, 2),
    "no values": lambda arrays: arrays["output_0"].__setitem__(-1, 0),
    "no shape": lambda arrays: arrays.update(output_0=np.array([0, 0])),
}


@pytest.mark.parametrize("how", SPOILED)
def test_figures_that_no_outputs_have_are_refused(tmp_path, how):
    path = tmp_path / "logits.npz"
    TASK.write_answers(path, measure_batches(batches(N), NAMES))
    arrays = dict(np.load(path))
    SPOILED[how](arrays)
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match="outputs"):
        TASK.parse_answers(path.read_bytes(), path)


def test_small_outputs_are_kept_and_large_ones_measured(monkeypatch):
    kept = TASK.gather(batches(7), N, None)
    for before, after in zip((*KEPT.reference, *KEPT.engine), (*kept.reference, *kept.engine), strict=True):
        np.testing.assert_array_equal(before, after)
    size = sum(output.nbytes for output in (*REFERENCE, *ENGINE))
    for most, expected in ((size, Sides), (size - 1, MeasuredSides)):
        monkeypatch.setattr(tensors_task, "KEPT_BYTES", most)
        assert type(TASK.gather(batches(7), N, None)) is expected
    classify = load_task("classification", ("a", "b"))
    logits = RNG.normal(size=(N, 2)).astype(np.float32)
    pairs = (((logits[i : i + 9],), (logits[i : i + 9] * 2,)) for i in range(0, N, 9))
    joined = classify.gather(pairs, N, np.arange(N))
    np.testing.assert_array_equal(joined.reference[0], logits)
    np.testing.assert_array_equal(joined.engine[0], logits * 2)
    np.testing.assert_array_equal(joined.truth, np.arange(N))


def test_no_more_than_a_batch_of_outputs_is_in_memory(monkeypatch):
    monkeypatch.setattr(tensors_task, "KEPT_BYTES", 1 << 20)
    shape, count = (4, 32, 32), 30
    task = load_task("tensors", (), (TensorInfo("map", (-1, *shape), "float32"),))

    def pairs():
        random = np.random.default_rng(0)
        for _ in range(count):
            output = random.random((8, *shape), np.float32)
            yield (output,), (output + np.float32(0.01),)

    tracemalloc.start()
    sides = task.gather(pairs(), 8 * count, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    batch = 2 * 8 * np.prod(shape) * 4
    assert peak < 4 * batch < count * batch / 5, "a batch, the next one, and copies of one image"
    assert task.compare(sides).outputs[0].max_abs == pytest.approx(0.01, abs=1e-6)


def test_outputs_that_do_not_match_are_refused_as_when_they_are_kept():
    broken = REFERENCE[0].copy()
    broken[12, 1] = np.nan
    with pytest.raises(DataError, match=r"reference itself holds NaN[\s\S]*output 'map', image 12"):
        measure_batches(batches(5, Sides((broken, *REFERENCE[1:]), ENGINE)), NAMES)
    with pytest.raises(DataError, match="do not match"):
        measure_batches(batches(5, Sides(REFERENCE, ENGINE[:4])), NAMES)
    with pytest.raises(DataError, match="do not match"):
        measure_sides(measure_batches(batches(5), NAMES), NAMES[:4])
    images = np.ones((4, 3), np.float32)
    with pytest.raises(DataError, match="differ in shape"):
        measure_batches([((images,), (images,)), ((images[:, :2],), (images[:, :2],))], ("map",))
    with pytest.raises(DataError, match="no images"):
        measure_batches([], ("map",))
