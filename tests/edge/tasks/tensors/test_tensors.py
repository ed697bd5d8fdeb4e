"""Outputs judged as numbers: figures, verdicts, files, gate, camera.

Oracles: float64 by hand, scipy's quantiles, what was planted. Negative controls: every way to spoil an output must fail.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from calib.errors import ArtifactError, DataError, UsageError
from calib.metrics import sqnr_db
from edge.tasks.budget import Budget, budget_for
from edge.tasks.gate_row import Tolerance
from edge.tasks.registry import class_names, load_task
from edge.tasks.task import GateRequest, Sides
from edge.tasks.task_names import TASK_OPTIONS, task_named
from edge.tasks.tensors.gate_rows import default_tolerances
from edge.tasks.tensors.ratio_interval import MIN_IMAGES, half_width, images_to_decide, t_quantile
from engines.layer_records import TensorInfo

N = 40
INFOS = (
    TensorInfo("embedding", (-1, 8), "float32"),
    TensorInfo("map", (-1, 2, 4, 4), "float32"),
    TensorInfo("ids", (-1, 50), "int64"),
)
TASK = load_task("tensors", (), INFOS)
RNG = np.random.default_rng(3)
REFERENCE = (
    RNG.normal(size=(N, 8)).astype(np.float32),
    RNG.random((N, 2, 4, 4)).astype(np.float32),
    RNG.integers(0, 1000, (N, 50)),
)
NOISE = RNG.normal(size=(N, 8)).astype(np.float32)


def engine(spread=0.02):
    return (REFERENCE[0] + np.float32(spread) * NOISE, REFERENCE[1] * np.float32(1.01), REFERENCE[2].copy())


def verdict(answers, budget=Budget(), reference=REFERENCE):  # noqa: B008  # frozen
    return TASK.judge(TASK.compare(Sides(reference, answers)), budget, random_weights=False)[1:]


def test_the_figures_are_those_worked_out_in_float64():
    answers = engine()
    answers[2][:4, 0] += 1
    found = TASK.compare(Sides(REFERENCE, answers))
    assert (found.images, found.not_finite, [f.name for f in found.outputs]) == (N, 0, ["embedding", "map", "ids"])
    a, b = REFERENCE[0].astype(np.float64), answers[0].astype(np.float64)
    each = [sqnr_db(x, y) for x, y in zip(a, b, strict=True)]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    figures = found.outputs[0]
    assert figures.sqnr_db == pytest.approx(sqnr_db(a, b))
    assert (figures.sqnr_median_db, figures.sqnr_worst_db) == pytest.approx((np.median(each), min(each)))
    assert (figures.cosine_mean, figures.cosine_worst) == pytest.approx((cosines.mean(), cosines.min()))
    assert figures.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.outputs[1].sqnr_db == pytest.approx(40, abs=1e-3)
    ids = found.outputs[2]
    assert (ids.max_abs, ids.equal_share, ids.cosine_mean) == (None, 1 - 4 / (N * 50), pytest.approx(1 - 4 / (N * 50)))
    one_hot = np.eye(1001)
    assert ids.sqnr_db == pytest.approx(sqnr_db(one_hot[REFERENCE[2]], one_hot[answers[2]]))
    assert TASK.contradiction(found) == ""


def test_the_interval_is_the_jackknifes():
    signal, noise = RNG.gamma(4, 1, 30), RNG.gamma(2, 1, 30)
    left_out = [math.log(np.delete(noise, i).sum() / np.delete(signal, i).sum()) for i in range(30)]
    expected = scipy.stats.t.ppf(0.975, 29) * math.sqrt(29 * np.var(left_out))
    assert half_width(noise, signal) == pytest.approx(expected, rel=1e-6)
    assert half_width(noise[:15], signal[:15]) is None
    one = np.eye(1, 30)[0]
    relative = 30 * (one - signal / signal.sum())
    expected = scipy.stats.t.ppf(0.975, 29) * scipy.stats.sem(relative)
    assert half_width(one, signal) == pytest.approx(expected, rel=1e-6), "all of the noise in one image"
    for freedom in (15, 16, 40, 10_000):
        assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=1e-5)


def test_the_number_of_images_that_decide():
    assert images_to_decide(100, 1.0, 0.5) == 400
    assert images_to_decide(100, 1.0, 0.99) == 110, "rounded up to two digits"
    assert images_to_decide(100, 1.0, 0.0) is None
    assert images_to_decide(100, 1.0, 1e-5) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sigma", "images", "least", "most_wrong"), [(0.5, 16, 0.935, 0.04), (0.5, 64, 0.94, 0.035), (1, 64, 0.92, 0.06)]
)
def test_the_interval_covers_the_true_figure_as_stated(sigma, images, least, most_wrong):
    rng, runs = np.random.default_rng(11), 3000
    signal, noise = np.exp(0.5 * rng.normal(size=(runs, images))), np.exp(sigma * rng.normal(size=(runs, images)))
    truth = sigma**2 / 2 - 0.125
    values = np.log(noise.sum(1) / signal.sum(1))
    widths = np.array([half_width(e, s) for e, s in zip(noise, signal, strict=True)])
    assert (np.abs(values - truth) <= widths).mean() >= least
    assert (values + widths < truth).mean() <= most_wrong, "intervals that lie on the good side of the truth"


def one_channel(answers):
    answers[1][:, 1] = 0


def swap(answers):
    answers[1][:] = answers[1][::-1].copy()


SPOILED = {
    "doubled": lambda answers: np.multiply(answers[0], 2, out=answers[0]),
    "halved": lambda answers: np.divide(answers[0], 2, out=answers[0]),
    "zeroed": lambda answers: answers[0].fill(0),
    "sign": lambda answers: np.negative(answers[0], out=answers[0]),
    "one channel": one_channel,
    "images exchanged": swap,
    "one NaN": lambda answers: answers[1].__setitem__((7, 0, 0, 0), np.nan),
    "infinity": lambda answers: answers[0].__setitem__((0, 0), np.inf),
    "integers off by one": lambda answers: np.add(answers[2], 1, out=answers[2]),
    "integers swapped in a tenth": lambda answers: answers[2][:, :5].fill(-1),
}


def test_an_engine_close_to_its_reference_passes():
    found, reason = verdict(engine())
    assert (found, "SQNR of 'embedding'" in reason, "2 other outputs" in reason) == ("pass", True, True)


@pytest.mark.parametrize("how", SPOILED)
def test_every_way_to_spoil_an_output_fails(how):
    answers = engine()
    SPOILED[how](answers)
    assert verdict(answers)[0] == "fail"


def test_outputs_that_are_exchanged_or_missing_are_refused():
    first, second, third = engine()
    for answers in ((second, first, third), (first, second), (first, second, third.astype(np.float32))):
        with pytest.raises(DataError, match="do not match"):
            TASK.compare(Sides(REFERENCE, answers))
    broken = REFERENCE[0].copy()
    broken[5, 1] = np.nan
    with pytest.raises(DataError, match=r"reference itself holds NaN[\s\S]*output 'embedding', image 5"):
        TASK.compare(Sides((broken, *REFERENCE[1:]), engine()))


def test_budgets_and_what_the_verdict_says():
    answers = engine()
    measured = TASK.compare(Sides(REFERENCE, answers)).outputs[0]
    assert measured.sqnr_low_db < measured.sqnr_db < measured.sqnr_high_db
    assert verdict(answers, Budget(sqnr_db=measured.sqnr_low_db - 0.01))[0] == "pass"
    assert verdict(answers, Budget(sqnr_db=measured.sqnr_high_db + 0.01))[0] == "fail"
    found, reason = verdict(answers, Budget(sqnr_db=measured.sqnr_db + 0.5))
    width = measured.sqnr_high_db - measured.sqnr_db
    needed = math.ceil(N * (width / 0.5) ** 2)
    assert found == "inconclusive"
    assert f"about {images_to_decide(N, width, 0.5):,} would" in reason
    assert images_to_decide(N, width, 0.5) >= needed
    assert verdict(answers, Budget(sqnr_db=0.0, cosine=0.99))[0] == "pass"
    assert verdict(answers, Budget(sqnr_db=0.0, cosine=0.99999999))[0] == "fail"
    assert verdict((REFERENCE[0] * 2, *REFERENCE[1:]), Budget(cosine=0.99))[0] == "pass", "a cosine does not see lengths"


def test_what_cannot_be_judged_is_inconclusive_in_words():
    zero = (np.zeros_like(REFERENCE[0]), *REFERENCE[1:])
    same = (np.repeat(REFERENCE[0][:1], N, axis=0), *REFERENCE[1:])
    for reference, words in ((zero, "zero for every image"), (same, "the same for every image")):
        found, reason = verdict(reference, reference=reference)
        assert (found, words in reason, "inf" in reason) == ("inconclusive", True, False)
    assert verdict((zero[0] + 1, *zero[1:]), reference=zero)[0] == "inconclusive"
    assert verdict((same[0] * 2, *same[1:]), reference=same)[0] == "fail", "an error is an error"
    assert verdict(REFERENCE) == ("pass", f"every output is equal on both sides, on all of {N} images")
    few = tuple(output[: MIN_IMAGES - 1] for output in REFERENCE)
    found, reason = verdict(few, reference=few)
    assert (found, f"needs {MIN_IMAGES} or more" in reason) == ("inconclusive", True)


def test_zero_rows_have_a_cosine_and_no_sqnr_of_their_own():
    reference, answers = REFERENCE[0].copy(), REFERENCE[0].copy()
    reference[0], answers[0], reference[1], answers[1], answers[2] = 0, 0, 0, 0.01, 0
    task = load_task("tensors", (), INFOS[:1])
    found = task.compare(Sides((reference,), (answers,)))
    (figures,) = found.outputs
    assert figures.cosine_mean == pytest.approx(1 - 2 / N)
    assert figures.cosine_worst == 0
    assert figures.sqnr_worst_db == 0.0, "of image 2; images 0 and 1 have none"
    assert "zero on 2 images" in found.not_compared[0]


def test_the_worst_images_come_first():
    answers = engine(0)
    answers[0][4] += 0.5
    answers[2][9] += 1
    answers = (*answers[:1], REFERENCE[1], *answers[2:])
    assert TASK.worst(Sides(REFERENCE, answers)).tolist() == [9, 4]
    answers[0][7, 0] = np.nan
    assert TASK.worst(Sides(REFERENCE, answers)).tolist() == [7, 9, 4]


def test_figures_that_contradict_each_other_are_found():
    found = TASK.compare(Sides(REFERENCE, engine()))
    changes = (
        {"sqnr_db": 60.0}, {"sqnr_low_db": 0.0}, {"sqnr_worst_db": 290.0}, {"cosine_mean": 1.5}, {"cosine_high": 0.0},
        {"cosine_worst": 1.0}, {"not_finite": 3}, {"name": "map"},
    )  # fmt: skip
    for change in changes:
        forged = replace(found, outputs=(replace(found.outputs[0], **change), *found.outputs[1:]))
        assert TASK.contradiction(forged), change
    assert TASK.contradiction(replace(found, images=0))
    assert TASK.contradiction(replace(found, outputs=()))


def test_answers_are_written_and_read_back(tmp_path):
    path, sides = tmp_path / "logits.npz", Sides(REFERENCE, engine())
    TASK.write_answers(path, sides)
    read = load_task("tensors").parse_answers(path.read_bytes(), path)
    for before, after in zip((*sides.reference, *sides.engine), (*read.reference, *read.engine), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
    assert TASK.misfit(read, N) == ""
    assert "40" in TASK.misfit(read, N + 1)
    assert "2 outputs" in TASK.misfit(Sides(read.reference[:2], read.engine[:2]), N)
    assert "'map'" in TASK.misfit(Sides((read.reference[0], read.reference[1][:, :1], read.reference[2]), read.engine), N)


@pytest.mark.parametrize("spoil", ["missing", "count", "shape", "dtype", "many"])
def test_other_bytes_are_refused(tmp_path, spoil):
    path = tmp_path / "logits.npz"
    arrays = {"outputs": np.array([1]), "reference_0": REFERENCE[0], "engine_0": REFERENCE[0]}
    changes = {
        "missing": {"reference_0": None}, "count": {"outputs": np.array([0])}, "shape": {"engine_0": REFERENCE[0][:-1]},
        "dtype": {"reference_0": REFERENCE[0].astype(np.float64), "engine_0": REFERENCE[0].astype(np.float64)},
        "many": {"outputs": np.array([10**9])},
    }[spoil]  # fmt: skip
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match="outputs"):
        TASK.parse_answers(path.read_bytes(), path)


def test_the_reference_travels_in_a_bundle():
    packed = TASK.pack_reference(REFERENCE, None)
    outputs, truth = TASK.unpack_reference(packed, N)
    assert truth is None
    for before, after in zip(REFERENCE, outputs, strict=True):
        np.testing.assert_array_equal(before, after)
    for wrong, images in (
        ({}, N),
        (packed, N + 1),
        ({"output_1": REFERENCE[0]}, N),
        ({"output_0": np.full((N, 2), np.nan, np.float32)}, N),
    ):
        with pytest.raises(DataError):
            TASK.unpack_reference(wrong, images)
    classify, logits, labels = load_task("classification", ("a", "b")), np.zeros((3, 2), np.float32), np.array([0, 1, 1])
    (back,), truth = classify.unpack_reference(classify.pack_reference((logits,), labels), 3)
    assert back is logits
    assert truth is labels
    with pytest.raises(DataError, match="out of range"):
        classify.unpack_reference(classify.pack_reference((logits,), labels + 1), 3)


def gate(before, now, chosen=None, tolerances=None):
    """Rows of the gate by name, for a build judged on the images `chosen` of the baseline's."""
    chosen = np.arange(N) if chosen is None else chosen
    records = [TASK.record(TASK.compare(sides), sides) for sides in (before, now)]
    records[0] = type(records[0])(**json.loads(json.dumps(vars(records[0]))))
    request = GateRequest(records[0], N, chosen, records[1], now, tolerances or default_tolerances(), random_weights=False)
    return {row.quantity: row for row in TASK.gate_rows(request)}


def test_the_gate_compares_each_output_on_the_same_images():
    before = Sides(REFERENCE, engine())
    rows = gate(before, before)
    assert list(rows) == [f"{kind} of {info.name}" for info in INFOS for kind in ("reference", "sqnr", "cosine")]
    assert {row.result for row in rows.values()} == {"pass"}
    assert all(abs(row.loss) < 1e-5 for row in rows.values())
    worse = gate(before, Sides(REFERENCE, engine(0.04)))
    assert {name for name, row in worse.items() if row.result == "fail"} == {"sqnr of embedding", "cosine of embedding"}
    assert worse["sqnr of embedding"].loss == pytest.approx(20 * math.log10(2), abs=1e-3)
    half = np.arange(0, N, 2)
    part = Sides(*(tuple(output[half] for output in side) for side in (REFERENCE, engine())))
    assert {row.result for row in gate(before, part, half).values()} == {"pass"}
    assert gate(before, part, half)["sqnr of embedding"].loss == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("spoil", [lambda a: -a, lambda a: a[:, ::-1], lambda a: 1.01 * a, lambda a: a[::-1]])
def test_the_gate_notices_another_reference(spoil):
    before = Sides(REFERENCE, engine())
    other = spoil(REFERENCE[0]).astype(np.float32)
    rows = gate(before, Sides((other, *REFERENCE[1:]), (other, *engine()[1:])))
    assert rows["reference of embedding"].result == "fail"
    assert rows["reference of map"].result == "pass"
    assert rows["sqnr of embedding"].result == "pass", "the engine agrees with the wrong reference"
    strict = default_tolerances() | {"sqnr": Tolerance(0.0, "none")}
    assert gate(before, before, tolerances=strict)["sqnr of map"].result == "pass"


def test_the_identity_holds_names_and_shapes_of_the_outputs():
    assert json.loads(json.dumps(TASK.identity())) == {
        "outputs": [["embedding", "float32", [-1, 8]], ["map", "float32", [-1, 2, 4, 4]], ["ids", "int64", [-1, 50]]]
    }


def test_a_frame_is_shown_by_shapes_and_lengths():
    answer = TASK.answer(tuple(output[:1] for output in REFERENCE), 2)
    first, second = json.loads(json.dumps(answer.json_fields()))["outputs"]
    assert (first["name"], first["shape"], second["shape"]) == ("embedding", [8], [2, 4, 4])
    assert first["length"] == pytest.approx(np.linalg.norm(REFERENCE[0][0]), rel=1e-5)
    assert [line.name for line in answer.lines()] == ["embedding 8", "map 2x4x4"]
    assert all(0 < line.share <= 1 for line in answer.lines())
    assert (answer.panel().title, len(answer.panel().bars)) == ("embedding", 2)
    broken = TASK.answer((np.full((1, 8), np.nan, np.float32), *(output[:1] for output in REFERENCE[1:])), 5)
    assert json.dumps(broken.json_fields(), allow_nan=False)
    assert broken.panel().title == "No number"
    assert TASK.answer((np.zeros((1, 3), np.float32), *(output[:1] for output in REFERENCE[1:])), 1).lines()[0].share == 0.0


def test_the_audit_counts_a_frame_far_from_fp32():
    frame, near = (tuple(output[:1] for output in side) for side in (REFERENCE, engine()))
    assert TASK.agree(frame, near)
    for scale in (2, 0.5, 0, -1, np.nan):
        far = (near[0] * np.float32(scale), *near[1:])
        assert not TASK.agree(frame, far), scale
    fields = json.loads(json.dumps(TASK.disagreement(frame, far), allow_nan=False))
    assert fields["outputs"]["embedding"] is None
    assert fields["outputs"]["map"]["sqnr_db"] == pytest.approx(40, abs=1e-3)


def test_options_of_one_task_are_refused_for_the_other():
    assert budget_for("classification", None, None, None) == Budget(0.5)
    assert budget_for("classification", 1.5, None, None) == Budget(1.5)
    assert budget_for("tensors", None, None, None).sqnr_db == 20
    assert budget_for("tensors", None, None, 0.99) == Budget(cosine=0.99)
    last = Budget(sqnr_db=31.0)
    assert budget_for("tensors", None, None, None, last) == last
    assert budget_for("tensors", None, 25, None, last) == Budget(sqnr_db=25)
    for task, options in (
        ("tensors", (1, None, None)),
        ("classification", (None, 20, None)),
        ("classification", (None, None, 0.9)),
    ):
        with pytest.raises(UsageError, match="does not apply to --task"):
            budget_for(task, *options)
    for options in ((None, -1, None), (None, math.nan, None), (None, None, 1.5)):
        with pytest.raises(UsageError, match="out of range"):
            budget_for("tensors", *options)
    assert [task_named(option) for option in TASK_OPTIONS] == ["classification", "tensors"]
    with pytest.raises(UsageError, match=r"unknown task[\s\S]*classify, tensors"):
        task_named("detect")
    assert Budget(points=math.nan).flaw
    assert Budget(sqnr_db=math.inf).flaw
    assert Budget(cosine=2.0).flaw
    assert not Budget().flaw


def test_labels_fit_the_outputs_or_are_refused_with_both_numbers():
    logits = (TensorInfo("logits", (-1, 3), "float32"),)
    assert class_names("classification", (), logits) == ("0", "1", "2")
    assert class_names("classification", ("a", "b", "c"), logits) == ("a", "b", "c")
    assert class_names("tensors", ("a",), logits) == ()
    for labels, words in ((("a", "b"), r"fewer[\s\S]*2 labels[\s\S]*3"), (tuple("abcd"), r"more[\s\S]*4 labels[\s\S]*3")):
        with pytest.raises(UsageError, match=words):
            class_names("classification", labels, logits)
    for outputs in ((), INFOS, INFOS[1:2], INFOS[2:]):
        with pytest.raises(UsageError, match=r"does not classify[\s\S]*--task tensors"):
            class_names("classification", (), outputs)
