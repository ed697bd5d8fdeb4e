"""The estimate of INT8's speed-up. Oracles: times computed by hand, and published pairs of latencies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calib.artifact import write_artifact
from engines.layer_records import EngineEvidence, Layer, LayerEvidence
from engines.plan_kernels import PlanStep
from engines.roofline import RATES, EngineWork, MachineRates, StepWork, Unknowns, engine_times, engine_work, estimate_speed_up
from engines.speed_estimate import SPEED_ARTIFACT, make_estimate
from engines.targets import TARGETS

RTX = MachineRates("made up", int8_tops=2.0, fp16_tops=1.0, bandwidth_gbs=100.0, launch_us=(2.0, 4.0), tensorrt=False)
EXACT = Unknowns(launch=3.0, bandwidth=1.0, traffic=1.0, efficiency=1.0, int8=1.0, merged=0.0)


def works(*steps):
    return EngineWork(steps, steps)


def test_times_are_those_computed_by_hand():
    """100 GB/s are 0.1 MB in a microsecond; 1 TOPS is half a million multiply-accumulates in one."""
    engine = works(
        StepWork(100_000, 300_000),  # 4 us of bytes
        StepWork(0, 100_000, float_macs=5_000_000),  # 10 us of products
        StepWork(0, 100_000, int8_macs=1_000_000, float_macs=250_000),  # 1 us and 0.5 us of products, 1 us of bytes
    )
    assert engine_times(engine, RTX, EXACT, 1) == pytest.approx({"launches": 9.0, "bytes": 4.0, "products": 11.5})
    twice = engine_times(engine, RTX, EXACT, 2)
    assert twice == pytest.approx({"launches": 9.0, "bytes": 7.0, "products": 23.0}), "weights are read once"
    halved = replace(EXACT, bandwidth=0.5, efficiency=0.5, int8=0.5, launch=1.0)
    assert engine_times(engine, RTX, halved, 1) == pytest.approx({"launches": 3.0, "bytes": 8.0, "products": 20 + 4 + 1})


def test_launches_alone_give_the_ratio_of_the_steps():
    empty = StepWork(0, 0)
    estimate = estimate_speed_up(works(*[empty] * 10), works(*[empty] * 15), RTX, 1)
    assert (estimate.low, estimate.high) == pytest.approx((1.5, 1.5))
    assert estimate.decided_by == "launches"


def test_products_alone_give_the_ratio_of_the_rates():
    """Less what INT8 may lose against FP16: between 0.7 of twice the rate and twice the rate."""
    heavy = 10**12
    int8, fp16 = works(StepWork(0, 0, int8_macs=heavy)), works(StepWork(0, 0, float_macs=heavy))
    estimate = estimate_speed_up(int8, fp16, RTX, 1)
    assert (estimate.low, estimate.high) == pytest.approx((1.4, 2.0), rel=1e-4)
    assert estimate.decided_by == "products"


def test_more_steps_in_int8_make_it_slower():
    """The negative control: conversions around a product that gains nothing."""
    fp16 = works(StepWork(0, 1000, float_macs=1000))
    int8 = works(StepWork(0, 1000), StepWork(0, 500, int8_macs=1000), StepWork(0, 1000))
    assert estimate_speed_up(int8, fp16, RTX, 1).high < 0.5


def test_a_range_wider_than_a_factor_of_two_is_no_prediction():
    step = StepWork(0, 0)
    narrow = estimate_speed_up(works(step), works(step), RTX, 8)
    assert narrow.predicts
    assert narrow.sentence() == "between 1.00x and 1.00x of FP16's speed at batch 8, decided by launches"
    wide = replace(narrow, low=0.9, high=1.81)
    assert not wide.predicts
    assert wide.sentence().startswith("no prediction at batch 8")
    assert replace(narrow, low=0.9, high=1.8).predicts


def test_an_engine_without_steps_has_no_time():
    with pytest.raises(ValueError, match="without steps"):
        estimate_speed_up(works(), works(StepWork(0, 0)), RTX, 1)


STEPS = (
    PlanStep("pad", "CastReplConc", ("conv",), 0, 500, 300, 100),
    PlanStep("product", "corrltn", ("conv",), 50, 1300, 1000, 100),  # 300 in, with 100 of zeros; 1000 out
    PlanStep("pointwise", "MulAddReshReplConcResh", ("conv", "relu"), 5, 1400, 400, 150),  # 1000 in, 400 out, 150 of zeros
    PlanStep("pointwise", "Mul", ("other",), 0, 80, 40),
    PlanStep("product", "fully_connected", ("fc", "conv"), 7, 60, 20),
)
LAYERS = (Layer("conv", "Conv", 1000, "int8", ""), Layer("fc", "Gemm", 10, "int8", ""))
EVIDENCE = EngineEvidence({"conv": LayerEvidence("int8", ""), "fc": LayerEvidence("fp16", "")}, steps=STEPS)


def test_a_plan_counts_as_written_for_its_own_library():
    engine = engine_work(EVIDENCE, LAYERS, RTX)
    assert engine.written == engine.merged
    assert engine.written == (
        StepWork(0, 500),
        StepWork(50, 1300, int8_macs=1000),
        StepWork(5, 1400),
        StepWork(0, 80),
        StepWork(7, 60, float_macs=10),
    )


def test_for_tensorrt_padding_is_dropped_and_epilogues_are_merged():
    """By hand: 200 into the product, 1000 between it and its epilogue, 250 out."""
    engine = engine_work(EVIDENCE, LAYERS, replace(RTX, tensorrt=True))
    assert engine.written == (
        StepWork(50, 1200, int8_macs=1000),
        StepWork(5, 1250),
        StepWork(0, 80),
        StepWork(7, 60, float_macs=10),
    )
    assert engine.merged == (StepWork(55, 450, int8_macs=1000), StepWork(0, 80), StepWork(7, 60, float_macs=10))


def test_an_estimate_is_written_and_read_back(tmp_path):
    """Every target with documented rates, that of the build first; two batches each."""
    estimate = make_estimate("a" * 64, EVIDENCE, EVIDENCE, LAYERS, "orin-nano")
    assert estimate.targets[0].target == "orin-nano"
    assert {speed.target for speed in estimate.targets} == set(RATES) <= set(TARGETS)
    assert {(up.batch, up.low, up.high) for speed in estimate.targets for up in speed.batches} == {(1, 1.0, 1.0), (8, 1.0, 1.0)}
    assert estimate.fp16.total.steps == len(STEPS)
    path = tmp_path / "speed.json"
    write_artifact(path, estimate)
    assert SPEED_ARTIFACT.parse(path.read_bytes(), path) == estimate


@pytest.mark.parametrize(("int8", "fp16"), [(EVIDENCE, EngineEvidence()), (EngineEvidence(), EVIDENCE)])
def test_without_the_steps_of_both_engines_there_is_no_estimate(int8, fp16):
    estimate = make_estimate("a" * 64, int8, fp16, LAYERS, "rtx")
    assert estimate.targets == ()
    assert "does not report its steps" in estimate.reason


ORIN_NANO = RATES["orin-nano"]
RTX_3060_LAPTOP = MachineRates("GeForce RTX 3060 Laptop GPU", 104, 52, 336, (1.0, 4.0))
PUBLISHED = [  # network, GPU, batch, FP16 and INT8 in ms; sources: docs/speed-estimates.md
    ("resnet18", ORIN_NANO, 1, 0.758, 0.485),
    ("resnet18", ORIN_NANO, 8, 3.537, 1.927),
    ("resnet50", ORIN_NANO, 1, 1.814, 1.190),
    ("resnet50", ORIN_NANO, 8, 8.816, 4.930),
    ("mobilenet_v2", ORIN_NANO, 1, 0.850, 0.781),
    ("mobilenet_v2", ORIN_NANO, 8, 3.925, 2.446),
    ("vit_small", ORIN_NANO, 1, 5.68, 4.92),
    ("resnet18", RTX_3060_LAPTOP, 1, 0.527, 0.418),
]


@pytest.fixture(scope="module")
def recorded():
    """What the engines of the published networks run, as scripts/bench/published_pairs.py read it from their plans."""
    text = (Path(__file__).parent / "published_works.json").read_text()
    return {
        (network, precision): EngineWork(*(tuple(StepWork(*row) for row in work[name]) for name in ("written", "merged")))
        for network, both in json.loads(text).items()
        for precision, work in both.items()
    }


@pytest.mark.parametrize(("network", "rates", "batch", "fp16_ms", "int8_ms"), PUBLISHED)
def test_the_range_holds_what_was_published(recorded, network, rates, batch, fp16_ms, int8_ms):
    estimate = estimate_speed_up(recorded[network, "int8"], recorded[network, "fp16"], rates, batch)
    assert estimate.low <= fp16_ms / int8_ms <= estimate.high
    assert estimate.predicts
    swapped = estimate_speed_up(recorded[network, "fp16"], recorded[network, "int8"], rates, batch)
    assert not swapped.low <= fp16_ms / int8_ms <= swapped.high, "control: the engines exchanged"
