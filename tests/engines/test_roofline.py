"""The estimate of INT8's speed-up. Oracles: times computed by hand, and published pairs of latencies."""

import json
import random
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from calib.artifact import write_artifact
from engines.layer_records import EngineEvidence, Layer, LayerEvidence
from engines.plan_kernels import PlanStep
from engines.roofline import (
    RANGES,
    RATES,
    EngineWork,
    MachineRates,
    StepWork,
    Unknowns,
    engine_times,
    engine_work,
    estimate_speed_up,
)
from engines.speed_estimate import FP16_PLAN_ARTIFACT, SPEED_ARTIFACT, describe_fp16, make_estimate
from engines.targets import TARGETS

RTX = MachineRates("made up", int8_tops=2.0, fp16_tops=1.0, bandwidth_gbs=100.0, launch_us=(2.0, 4.0), tensorrt=False)
EXACT = Unknowns(launch=3.0, bandwidth=1.0, traffic=1.0, efficiency=1.0, int8=1.0, merged=0.0)


def works(*steps):
    return EngineWork(steps, steps, steps)


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
    assert narrow.sentence() == "faster: 1.00 to 1.00 times FP16's speed at batch 8, decided by launches"
    wide = replace(narrow, low=0.9, high=1.81)
    assert not wide.predicts
    assert wide.sentence() == "no prediction: 0.90 to 1.81 times FP16's speed at batch 8"
    assert replace(narrow, low=0.9, high=1.8).predicts
    assert replace(narrow, low=0.9, high=1.8).sentence().startswith("faster or slower: 0.90 to 1.80")
    assert replace(narrow, low=0.8, high=0.9).sentence().startswith("slower: ")


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
    engine = engine_work(EVIDENCE, LAYERS)
    assert engine.for_machine(RTX) == (engine.planned, engine.planned)
    assert engine.macs() == (1000, 10)
    assert engine.planned == (
        StepWork(0, 500),
        StepWork(50, 1300, int8_macs=1000),
        StepWork(5, 1400),
        StepWork(0, 80),
        StepWork(7, 60, float_macs=10),
    )


def test_for_tensorrt_padding_is_dropped_and_epilogues_are_merged():
    """By hand: 200 into the product, 1000 between it and its epilogue, 250 out."""
    engine = engine_work(EVIDENCE, LAYERS)
    assert engine.for_machine(replace(RTX, tensorrt=True)) == (engine.unpadded, engine.merged)
    assert engine.unpadded == (
        StepWork(50, 1200, int8_macs=1000),
        StepWork(5, 1250),
        StepWork(0, 80),
        StepWork(7, 60, float_macs=10),
    )
    assert engine.merged == (StepWork(55, 450, int8_macs=1000), StepWork(0, 80), StepWork(7, 60, float_macs=10))


FP16 = describe_fp16("b" * 64, EVIDENCE, LAYERS)


def test_a_step_that_transposes_is_merged_neither_in_int8_nor_in_fp16():
    """Scaling, bias and transposition after a product: a step in INT8, which names the product, and in FP16."""
    product = PlanStep("product", "fully_connected", ("q/MatMul",), 50, 300, 100)
    int8 = PlanStep("pointwise", "MulAddMulMinMaxRounCastReshTran", ("q/MatMul", "q/Add", "Transpose"), 5, 150, 50)
    fp16 = PlanStep("pointwise", "AddReshTran", ("q/Add", "Transpose"), 5, 200, 100)
    works = [engine_work(EngineEvidence(steps=(product, step)), ()) for step in (int8, fp16)]
    assert [len(work.merged) for work in works] == [2, 2]
    flat = engine_work(EngineEvidence(steps=(product, replace(int8, name="MulAddMulMinMaxRounCast"))), ())
    assert len(flat.merged) == 1, "control: without the transposition"


def test_an_estimate_is_written_and_read_back(tmp_path):
    """Every target with documented rates, that of the build first; two batches each."""
    estimate = make_estimate("a" * 64, EVIDENCE, LAYERS, FP16, "orin-nano")
    assert estimate.targets[0].target == "orin-nano"
    assert {speed.target for speed in estimate.targets} == set(RATES) <= set(TARGETS)
    assert {(up.batch, up.low, up.high) for speed in estimate.targets for up in speed.batches} == {(1, 1.0, 1.0), (8, 1.0, 1.0)}
    assert estimate.int8 == estimate.fp16
    assert (estimate.fp16.steps.steps, estimate.fp16.int8_macs, estimate.fp16.float_macs) == (len(STEPS), 1000, 10)
    for artifact, value in ((SPEED_ARTIFACT, estimate), (FP16_PLAN_ARTIFACT, FP16)):
        write_artifact(tmp_path / artifact.file, value)
        assert artifact.parse((tmp_path / artifact.file).read_bytes(), tmp_path / artifact.file) == value


@pytest.mark.parametrize(
    ("int8", "fp16", "which"), [(EVIDENCE, EngineEvidence(), "FP16"), (EngineEvidence(), EVIDENCE, "INT8")]
)
def test_without_the_steps_of_both_engines_there_is_no_estimate(int8, fp16, which):
    estimate = make_estimate("a" * 64, int8, LAYERS, describe_fp16("b" * 64, fp16, LAYERS), "rtx")
    assert estimate.targets == ()
    assert estimate.reason == f"the {which} engine does not report its steps"


ORIN_NANO = RATES["orin-nano"]
RTX_3060_LAPTOP = MachineRates("GeForce RTX 3060 Laptop GPU", 104, 52, 336, (1.0, 4.0))
RTX_5070 = MachineRates("GeForce RTX 5070", 247, 123.5, 672, (1.0, 4.0), traffic=(0.2, 1.0))
SAME, AS_VIT_B = (1, 1, 1, 1), (4, 2, 4, 4)
PUBLISHED = [  # network, factors, GPU, batch, FP16 and INT8 in ms; sources: docs/speed-estimates.md
    ("resnet18", SAME, ORIN_NANO, 1, 0.758, 0.485),
    ("resnet18", SAME, ORIN_NANO, 8, 3.537, 1.927),
    ("resnet50", SAME, ORIN_NANO, 1, 1.814, 1.190),
    ("resnet50", SAME, ORIN_NANO, 8, 8.816, 4.930),
    ("mobilenet_v2", SAME, ORIN_NANO, 1, 0.850, 0.781),
    ("mobilenet_v2", SAME, ORIN_NANO, 8, 3.925, 2.446),
    ("vit_small", AS_VIT_B, ORIN_NANO, 1, 5.68, 4.92),
    ("resnet18", SAME, RTX_3060_LAPTOP, 1, 0.527, 0.418),
    ("vit_small", SAME, RTX_5070, 8, 1.0, 1.13),  # the backbone of RF-DETR nano
    ("vit_small", SAME, RATES["thor"], 1, 22, 20),  # likewise RF-DETR-Seg XL
]


@pytest.fixture(scope="module")
def recorded():
    """What the engines of the published networks run, as scripts/bench/published_pairs.py read it from their plans."""
    text = (Path(__file__).parent / "published_works.json").read_text()
    return {
        (network, precision): [[StepWork(*row) for row in work[name]] for name in ("unpadded", "merged")]
        for network, both in json.loads(text).items()
        for precision, work in both.items()
    }


def scaled(recorded, factors):
    """The work of a wider network."""
    unpadded, merged = (
        tuple(StepWork(*(f * v for f, v in zip(factors, astuple(step), strict=True))) for step in steps) for steps in recorded
    )
    return EngineWork(unpadded, unpadded, merged)


@pytest.mark.parametrize(("network", "factors", "rates", "batch", "fp16_ms", "int8_ms"), PUBLISHED)
def test_the_range_holds_what_was_published(recorded, network, factors, rates, batch, fp16_ms, int8_ms):
    int8, fp16 = (scaled(recorded[network, precision], factors) for precision in ("int8", "fp16"))
    estimate = estimate_speed_up(int8, fp16, rates, batch)
    assert estimate.low <= fp16_ms / int8_ms <= estimate.high
    if network != "vit_small":
        swapped = estimate_speed_up(fp16, int8, rates, batch)
        assert not swapped.low <= fp16_ms / int8_ms <= swapped.high, "control: the engines exchanged"


def test_no_value_within_the_ranges_leaves_the_estimate(recorded):
    """The estimate takes the ends of each range only. Oracle: values drawn between them."""
    int8, fp16 = (scaled(recorded["resnet18", precision], SAME) for precision in ("int8", "fp16"))
    estimate, drawn = estimate_speed_up(int8, fp16, ORIN_NANO, 8), random.Random(0)
    ranges = {**RANGES, "launch": ORIN_NANO.launch_us, "traffic": ORIN_NANO.traffic}
    for _ in range(200):
        unknowns = Unknowns(**{name: drawn.uniform(*ends) for name, ends in ranges.items()})
        times = [sum(engine_times(engine, ORIN_NANO, unknowns, 8).values()) for engine in (fp16, int8)]
        assert estimate.low <= times[0] / times[1] <= estimate.high
