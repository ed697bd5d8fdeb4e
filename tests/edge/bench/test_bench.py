"""edge.bench: figures against numpy, scipy and arithmetic by hand; loops on a clock that only the fake runner moves."""

import json
import mmap
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from for_all import for_all
from scipy import stats

from calib.artifact import from_fields, read_artifact, write_artifact
from calib.errors import InputError
from edge.bench.compare_builds import _blocks, interleave, median_ratio
from edge.bench.latency import Plan, summarize, time_runs
from edge.bench.machine import Machine, this_machine
from edge.bench.measure import Conditions, choose_batches, compare, measure_build
from edge.bench.memory import Memory, Resident, measure_memory, resident
from edge.bench.results import BenchReport, ComparisonReport
from edge.cli.bench import parse_batches
from edge.images.golden_pair import GoldenPair
from edge.images.preprocess import Preprocess
from edge.progress import Silent
from edge.runtime.open_build import OpenedBuild
from edge.runtime.runner import FakeRunner
from engines.build_folder.manifest import EngineManifest, EngineRecord, FileRecord, TensorInfo
from engines.build_spec import BatchRange
from engines.precision_receipt import Receipt

SHAPE, CLASSES = (3, 8, 8), 4


class FakeClock:
    """Stands still until somebody moves it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class TimedRunner(FakeRunner):
    """Takes `seconds(batch, call)` of the fake clock for every call, which are counted from 0."""

    def __init__(self, clock, seconds):
        super().__init__(SHAPE, CLASSES)
        self.clock, self.seconds, self.seen = clock, seconds, []

    def __call__(self, images):
        self.seen.append(images.copy())
        self.clock.now += self.seconds(len(images), len(self.batches))
        return super().__call__(images)


def manifest(**changes):
    record = FileRecord("model.onnx", "0" * 64)
    made = EngineManifest(
        model="ufovit_tiny", precision="int8", target="cpu", task="classification", created="2026-01-01T00:00:00+00:00",
        checkpoint=None, onnx=record,
        qdq_onnx=record, calibration=None, engine=EngineRecord("engine.onnx", "1" * 64, 10, "ort", "1", ()),
        input=TensorInfo("image", (-1, *SHAPE), "float32"), outputs=(TensorInfo("logits", (-1, CLASSES), "float32"),),
        preprocess={}, labels=("a", "b", "c", "d"), receipt=Receipt(1.0, {}, {}, (), 1, None),
    )  # fmt: skip
    return replace(made, **changes)


def opened(runner, *, size=8, batch=(1, 1, 32), notes=(), **changes):
    rng = np.random.default_rng(0)
    golden = GoldenPair(np.zeros((8, 8, 1), np.uint8), rng.normal(size=(3, size, size)).astype(np.float32))
    preprocess = Preprocess(size, size, (0.5,) * 3, (0.25,) * 3)
    ran_on = "a fake: the engine itself"
    build = None  # nothing measured here reads a file
    return OpenedBuild(
        build, manifest(**changes), preprocess, golden, runner, "ort", ran_on, BatchRange(*batch), notes, itself=True
    )


def conditions(clock, **plan):
    return Conditions(Plan(**plan), 0, clock, lambda _seconds: None)


def run_bench(build, batches, how):
    monitor, before = "power is not measured: a test", Resident(1, 2)
    return measure_build(build, batches, how, monitor=monitor, before=before, progress=Silent())


# Figures -----------------------------------------------------------------------------------------------------------------


@for_all(n=[1, 2, 3, 10, 101, 1000])
def test_figures_are_those_of_numpy_and_scipy(n):
    times = np.random.default_rng(n).gamma(3, 2, n)
    found = summarize(times)
    assert (found.runs, found.min_ms, found.max_ms) == (n, times.min(), times.max())
    assert found.mean_ms == pytest.approx(statistics.fmean(times))
    for name, q in (("p50_ms", 50), ("p90_ms", 90), ("p95_ms", 95), ("p99_ms", 99)):
        ordered = sorted(times)
        at = q / 100 * (n - 1)
        low = int(at)
        by_hand = ordered[low] + (at - low) * (ordered[min(low + 1, n - 1)] - ordered[low])
        assert getattr(found, name) == pytest.approx(by_hand), name
    assert found.p50_ms == pytest.approx(statistics.median(times))
    assert found.cv == pytest.approx(stats.variation(times, ddof=1) if n > 1 else 0.0)
    other = summarize(2 * times)
    assert (other.p99_ms, other.cv) == (pytest.approx(2 * found.p99_ms), pytest.approx(found.cv))


@pytest.mark.parametrize("times", [[], [0.0, 0.0], [1.0, np.nan], [1.0, np.inf], [1.0, -1.0]])
def test_what_are_no_times_is_refused(times):
    with pytest.raises(InputError, match="no times"):
        summarize(np.array(times, np.float64))


@pytest.mark.parametrize(
    "plan", [{"warm_up": -1}, {"runs": 0}, {"duration_s": -1.0}, {"duration_s": np.inf}, {"duration_s": np.nan}]
)
def test_a_plan_that_measures_nothing_is_refused(plan):
    with pytest.raises(InputError, match="nothing to measure"):
        Plan(**plan)


# The loop ----------------------------------------------------------------------------------------------------------------


def test_only_what_follows_the_warm_up_counts():
    clock = FakeClock()
    runner = TimedRunner(clock, lambda _batch, call: 9.0 if call < 3 else 0.001 * call)
    found = time_runs(lambda: runner(np.zeros((2, *SHAPE), np.float32)), Plan(3, 4), clock)
    np.testing.assert_allclose(found.times_ms, [3, 4, 5, 6])
    assert found.end_s - found.begin_s == pytest.approx(0.018)
    assert found.per_second(2) == pytest.approx(2 * 4 / 0.018)
    assert len(runner.batches) == 7


def test_it_goes_on_for_as_long_as_asked():
    clock = FakeClock()
    runner = TimedRunner(clock, lambda *_: 0.25)
    work = lambda: runner(np.zeros((1, *SHAPE), np.float32))  # noqa: E731
    assert len(time_runs(work, Plan(0, 2, 2.0), clock).times_ms) == 8
    assert len(time_runs(work, Plan(0, 10, 2.0), clock).times_ms) == 10, "and for as many runs"


def test_a_clock_that_stands_still_is_noticed():
    with pytest.raises(InputError, match="did not advance"):
        time_runs(lambda: None, Plan(0, 3), FakeClock())


def test_the_golden_image_is_what_is_measured():
    clock = FakeClock()
    runner = TimedRunner(clock, lambda batch, _call: 0.01 * batch)
    build = opened(runner, notes=("a note",))
    report = run_bench(build, (1, 4), conditions(clock, warm_up=2, runs=5))
    assert [len(x) for x in runner.seen] == [1] * 7 + [4] * 7
    for images in runner.seen:
        for image in images:
            np.testing.assert_array_equal(image, build.golden.tensor)
    assert [result.batch for result in report.results] == [1, 4]
    for result in report.results:
        assert result.latency.runs == 5
        assert result.latency.p50_ms == pytest.approx(10 * result.batch)
        assert result.images_per_s == pytest.approx(100)
        assert result.compute is None
        assert result.energy is None
    assert report.power == "power is not measured: a test"
    assert report.notes[0] == "a note"
    assert any("p99 of 5 runs" in note for note in report.notes)
    assert report.memory.before_bytes == 1
    assert report.build.image_shape == SHAPE


def test_notes_of_drawn_weights_and_a_busy_machine(monkeypatch):
    clock = FakeClock()
    build = opened(TimedRunner(clock, lambda *_: 0.01), random_weights=True)
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0, 0))
    notes = run_bench(build, (1,), conditions(clock, warm_up=0, runs=100)).notes
    assert any("RANDOM WEIGHTS" in note for note in notes)
    assert any("busy (load 99.0" in note for note in notes)
    assert not any("p99" in note for note in notes)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0, 0))
    quiet = run_bench(opened(build.runner), (1,), conditions(clock, warm_up=0, runs=100)).notes
    assert quiet == ()


@pytest.mark.parametrize(
    ("asked", "ranges", "expected"),
    [
        (None, [(1, 1, 32)], (1, 2, 4, 8)),
        (None, [(1, 1, 2)], (1, 2)),
        (None, [(3, 3, 3)], (3,)),
        ((5, 1), [(1, 1, 8)], (5, 1)),
        (None, [(1, 1, 8), (2, 4, 4)], (2, 4)),
        ((9,), [(1, 1, 8)], None),
        ((1,), [(1, 1, 8), (2, 2, 2)], None),
        (None, [(1, 1, 1), (2, 2, 2)], None),
    ],
)
def test_batches_fit_every_build(asked, ranges, expected):
    found = [BatchRange(*r) for r in ranges]
    if expected is None:
        with pytest.raises(InputError, match="batch"):
            choose_batches(asked, *found)
    else:
        assert choose_batches(asked, *found) == expected


@pytest.mark.parametrize(("text", "expected"), [("1,2,4", (1, 2, 4)), (" 8 ", (8,)), ("4,4,1", (4, 1)), (None, None)])
def test_batch_sizes_are_read(text, expected):
    assert parse_batches(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "1.5", "two", "1;2", "٣", ",".join("1" * 40)])
def test_batch_sizes_that_are_none(text):
    with pytest.raises(InputError, match="must be a list of batch sizes"):
        parse_batches(text)


# Two builds --------------------------------------------------------------------------------------------------------------


def test_runs_go_a_b_b_a():
    clock, order = FakeClock(), []

    def work(name, seconds):
        def run():
            order.append(name)
            clock.now += seconds

        return run

    first, second = interleave(work("A", 0.001), work("B", 0.004), Plan(1, 4), clock, lambda _s: order.append("-"))
    assert "".join(order) == "AB" + "-A-B-B-A-A-B-B-A"
    np.testing.assert_allclose(first, [1.0] * 4)
    np.testing.assert_allclose(second, [4.0] * 4)
    long, _ = interleave(work("A", 0.001), work("B", 0.004), Plan(0, 1, 0.05), clock, lambda _s: None)
    assert len(long) == 10


def test_pauses_are_in_nobodys_time():
    clock = FakeClock()

    def pause(_seconds):
        clock.now += 5

    def work():
        clock.now += 0.001

    first, second = interleave(work, work, Plan(0, 6), clock, pause)
    np.testing.assert_allclose(np.concatenate([first, second]), 1.0)


def test_a_drift_of_the_machine_meets_both_alike():
    """Both take the same, in a machine that slows down from run to run: A B A B ... would favour A at every pair."""
    clock = FakeClock()
    count = iter(range(10_000))

    def work():
        clock.now += 0.001 * (1 + next(count) / 100)

    first, second = interleave(work, work, Plan(0, 400), clock, lambda _s: None)
    found = median_ratio(first, second)
    assert found.low <= 1 <= found.high
    assert found.ratio == pytest.approx(1, abs=1e-3)


def gamma_pairs(n, factor, seed):
    rng = np.random.default_rng(seed)
    return factor * rng.gamma(20, 0.5, n), rng.gamma(20, 0.5, n)


def test_the_ratio_is_that_of_the_medians():
    first, second = gamma_pairs(201, 2.0, 0)
    found = median_ratio(first, second)
    assert found.ratio == pytest.approx(statistics.median(first) / statistics.median(second))
    assert found.low <= found.ratio <= found.high
    assert (found.runs, found.level) == (201, 0.95)
    assert median_ratio(first, second) == found, "the same times, the same interval"
    scaled = median_ratio(3 * first, second)
    assert (scaled.low, scaled.high) == (pytest.approx(3 * found.low), pytest.approx(3 * found.high))
    turned = median_ratio(second, first)
    assert turned.ratio == pytest.approx(1 / found.ratio)
    assert (turned.low, turned.high) == (pytest.approx(1 / found.high), pytest.approx(1 / found.low))


def test_the_interval_is_that_of_scipys_bootstrap():
    """Independent pairs: blocks or not, both estimate one distribution; scipy draws from its own generator."""
    first, second = gamma_pairs(300, 1.5, 1)
    theirs = stats.bootstrap(
        (first, second), lambda a, b, axis=-1: np.median(a, axis) / np.median(b, axis), paired=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    ours = median_ratio(first, second)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.3 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.3 * width)


def coverage(block, noise, trials=150, n=120):
    """Share of intervals that hold the true ratio, 1."""
    hits = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        steps = rng.normal(size=(2, n))
        first, second = (np.exp(0.1 * noise(rng, side)) for side in steps)
        found = median_ratio(first, second, resamples=400) if block else plain(first, second)
        hits += found.low <= 1 <= found.high
    return hits / trials


def plain(first, second):
    """The same without blocks."""
    drawn = np.random.default_rng(0).integers(0, len(first), (400, len(first)))
    ratios = np.median(first[drawn], axis=1) / np.median(second[drawn], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return replace(median_ratio(first, second, resamples=2), low=low, high=high)


def white(_rng, steps):
    return steps


def sluggish(_rng, steps):
    """Each run half like the one before it."""
    out = np.zeros_like(steps)
    for i, step in enumerate(steps):
        out[i] = step + (0.5 * out[i - 1] if i else 0)
    return out


def test_the_interval_covers_what_it_says():
    assert coverage(True, white) > 0.90
    assert coverage(True, sluggish) > 0.84
    assert coverage(False, sluggish) < coverage(True, sluggish), "control: without blocks it is too narrow"


def test_blocks_are_runs_of_neighbours_on_a_circle():
    drawn = _blocks(27, 50, 0)
    assert drawn.shape == (50, 27)
    assert ((drawn >= 0) & (drawn < 27)).all()
    inside = np.ones(26, bool)
    inside[2::3] = False  # a block is 3 long
    assert ((np.diff(drawn, axis=1)[:, inside] % 27) == 1).all()
    assert _blocks(2, 5, 0).shape == (5, 2)


@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0, np.nan], [1.0, 1.0])]
)
def test_what_are_no_pairs_is_refused(first, second):
    with pytest.raises(InputError, match="not in pairs"):
        median_ratio(np.array(first, np.float64), np.array(second, np.float64))


def test_two_builds_on_one_image():
    clock = FakeClock()
    fast, slow = (TimedRunner(clock, lambda batch, call, k=k: 0.001 * k * batch + 1e-6 * (call % 7)) for k in (1, 3))
    report = compare(opened(fast), opened(slow, precision="fp32"), (1, 2), conditions(clock, warm_up=1, runs=20), Silent())
    assert [result.ratio.ratio for result in report.results] == [pytest.approx(1 / 3, rel=1e-2)] * 2
    assert [len(x) for x in fast.seen] == [len(x) for x in slow.seen] == [1] * 21 + [2] * 21
    assert all((x == fast.seen[0][0]).all() for x in (*fast.seen, *slow.seen))
    assert (report.first.precision, report.second.precision) == ("int8", "fp32")


def test_builds_of_different_sizes_are_not_compared():
    clock = FakeClock()
    builds = [opened(TimedRunner(clock, lambda *_: 0.01), size=size) for size in (8, 16)]
    with pytest.raises(InputError, match=r"different sizes\n  where: --against\n  found: \(3, 8, 8\) and \(3, 16, 16\)"):
        compare(*builds, (1,), conditions(clock), Silent())


# Artifacts, machine, memory ----------------------------------------------------------------------------------------------


def test_reports_go_to_disk_and_back(tmp_path):
    clock = FakeClock()
    build = opened(TimedRunner(clock, lambda *_: 0.01))
    how = conditions(clock, warm_up=0, runs=5)
    for report, cls in (
        (run_bench(build, (1, 2), how), BenchReport),
        (compare(build, build, (1,), how, Silent()), ComparisonReport),
    ):
        write_artifact(tmp_path / "report.json", report)
        assert read_artifact(tmp_path / "report.json", cls, remake="ufovit bench") == report
        fields = json.loads((tmp_path / "report.json").read_text())
        assert fields.pop("schema_version") == 1
        assert from_fields(cls, fields) == report
        assert asdict(report)["image"] == "the golden image of the build, repeated"


def test_the_machine_is_named():
    found = this_machine(FakeRunner(SHAPE, CLASSES))
    assert found.cores >= 1
    assert found.device == ""
    assert found.libraries["numpy"] == np.__version__
    assert "Linux" in found.system
    assert found.processor
    assert Machine("", "", 4, 2.1, "", {}).busy
    assert not Machine("", "", 4, 1.9, "", {}).busy
    assert not Machine("", "", 4, None, "", {}).busy


def test_memory_is_what_linux_says(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\nThreads:\t3\n")
    assert resident(status) == Resident(1 << 20, 2 << 20)
    status.write_text("Name:\tpython\nVmRSS:\tlots\n")
    assert resident(status) == resident(tmp_path / "missing") == Resident(None, None)
    assert measure_memory(Resident(5, 6), FakeRunner(SHAPE, CLASSES), tmp_path / "missing") == Memory(5, None, None)


def test_memory_of_this_process_grows_with_it():
    before = resident()
    held = mmap.mmap(-1, 64 << 20)  # not malloc, which may take what earlier tests have freed
    np.frombuffer(held, np.uint8)[:] = 1
    after = resident()
    assert 48 << 20 < after.now_bytes - before.now_bytes < 96 << 20
    assert after.peak_bytes >= after.now_bytes
    assert len(held) == 64 << 20


# The command -------------------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """`ufovit bench` on fake builds; `opened` are the calls of open_runner."""

    folder: Path
    opened: list

    def __call__(self, *arguments):
        from edge.cli.main import app

        command, bound, _ = app.parse_args(["bench", *map(str, arguments)], exit_on_error=False)
        return command(*bound.args, **bound.kwargs)


@dataclass
class FakeFolder:
    """A build folder without a drift.json."""

    path: Path
    require_signature: Path | None

    def find(self, _artifact):
        return None


@pytest.fixture
def ufovit_bench(tmp_path, monkeypatch):
    calls = []

    monkeypatch.setattr("edge.cli.bench.BuildFolder", FakeFolder)

    def open_runner(build, runner, *, threads):
        calls.append((build.path.name, runner, build.require_signature, threads))
        model, _, precision = build.path.name.partition("-")
        build = opened(FakeRunner(SHAPE, CLASSES), batch=(1, 1, 2), model=model, precision=precision or "int8")
        return replace(build, name=runner, itself=runner != "openvino")

    monkeypatch.setattr("edge.runtime.open_build.open_runner", open_runner)
    monkeypatch.setattr("edge.bench.power.find_monitor", lambda: "power is not measured: a test")
    return Command(tmp_path, calls)


def test_the_command_prints_and_writes(ufovit_bench, tmp_path, capsys):
    report = tmp_path / "bench.json"
    assert ufovit_bench("build", "--runner", "ort", "--runs", 5, "--warm-up", 1, "--threads", 2, "--json", report) == 0
    out = capsys.readouterr().out
    for word in ("p50 ms", "p99 ms", "CV", "images/s", "the engine itself", "MiB in RAM", "power is not measured", "golden"):
        assert word in out
    found = read_artifact(report, BenchReport, remake="ufovit bench")
    assert [result.batch for result in found.results] == [1, 2]
    assert found.threads == 2
    assert found.results[0].latency.p50_ms > 0
    assert ufovit_bench.opened == [("build", "ort", None, 2)]


def test_the_command_compares_and_feeds_the_gate(ufovit_bench, tmp_path, capsys):
    from edge.gate.baseline import LatencyRatio

    ratio, report = tmp_path / "ratio.json", tmp_path / "both.json"
    options = ("--against", "build-fp32", "--against-runner", "trt", "--runs", 8, "--warm-up", 0)
    assert ufovit_bench("build", "--runner", "ort", *options, "--json", report, "--latency", ratio) == 0
    out = capsys.readouterr().out
    for word in ("BUILD", "OTHER", "ratio of medians", "A B B A"):
        assert word in out
    assert [call[:2] for call in ufovit_bench.opened] == [("build", "ort"), ("build-fp32", "trt")]
    both = read_artifact(report, ComparisonReport, remake="ufovit bench")
    assert [result.batch for result in both.results] == [1], "one batch size unless more are asked for"
    gate = read_artifact(ratio, LatencyRatio, remake="ufovit bench")
    found = both.results[0].ratio
    assert (gate.ratio, gate.low, gate.high, gate.runs) == (found.ratio, found.low, found.high, 8)
    assert set(json.loads(ratio.read_text())) == {"schema_version", "ratio", "low", "high", "runs"}


def test_a_measured_speed_is_kept_only_of_an_int8_engine_beside_a_wider_one(ufovit_bench, monkeypatch):
    """Oracle: the ratio that is printed and written, inverted: how many times as fast, not as long."""
    kept = []
    monkeypatch.setattr(
        "edge.pipeline.rejudge.record_speed", lambda folder, measured, _progress: kept.append((folder, measured))
    )
    options = ("--runs", 8, "--warm-up", 0, "--record")
    for other in ("other-fp16", "build-int8"):
        with pytest.raises(InputError, match="beside the FP16 or FP32 build of the same model"):
            ufovit_bench("build", "--against", other, *options)
    with pytest.raises(InputError, match="a graph runs"):
        ufovit_bench("build", "--against", "build-fp16", "--runner", "openvino", *options)
    assert kept == []
    report = ufovit_bench.folder / "both.json"
    assert ufovit_bench("build", "--against", "build-fp16", "--json", report, *options) == 0
    ratio = read_artifact(report, ComparisonReport, remake="ufovit bench").results[0].ratio
    ((folder, measured),) = kept
    (found,) = measured.batches
    assert (str(folder), measured.precision, found.batch, found.runs) == ("build", "fp16", 1, 8)
    assert (found.speed, found.low, found.high) == pytest.approx((1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--against", "other-fp32"], "FP32 build of the same model"),
        (["--against", "build-int8"], "FP32 build of the same model"),
        (["--against", "build-fp32", "--runner", "openvino"], "a graph runs"),
        (["--against", "build-fp32", "--against-runner", "openvino"], "a graph runs"),
    ],
)
def test_a_ratio_that_is_none_of_a_gates_is_not_written(ufovit_bench, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        ufovit_bench("build", "--latency", tmp_path / "ratio.json", "--runs", 2, "--warm-up", 0, *options)
    assert list(tmp_path.iterdir()) == []
    assert ufovit_bench("build", "--runs", 2, "--warm-up", 0, *options) == 0, "as a figure it is fine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--latency", "x.json"], "two builds"),
        (["--against-runner", "ort"], "two builds"),
        (["--record"], "two builds"),
        (["--batch", "3"], "does not support this batch size"),
        (["--batch", "x"], "must be a list of batch sizes"),
        (["--runs", "0"], "--runs is out of range"),
        (["--warm-up", "-1"], "--warm-up is out of range"),
        (["--duration", "nan"], "--duration is out of range"),
    ],
)
def test_bad_options_are_refused(ufovit_bench, options, words):
    with pytest.raises(InputError, match=words):
        ufovit_bench("build", *options)


def test_the_runner_is_closed_whatever_happens(ufovit_bench, monkeypatch):
    runner = FakeRunner(SHAPE, CLASSES)
    monkeypatch.setattr("edge.runtime.open_build.open_runner", lambda *_a, **_k: opened(runner))
    monkeypatch.setattr("edge.bench.measure.time_runs", lambda *_: (_ for _ in ()).throw(InputError("a planted fault")))
    with pytest.raises(InputError, match="planted"):
        ufovit_bench("build", "--runs", 1)
    assert runner.closed
