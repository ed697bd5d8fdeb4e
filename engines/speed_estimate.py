"""How fast the INT8 engine is beside the FP16 engine of the same network.

fp16_plan.json       what the FP16 engine runs
speed.json           the expected speed-up, from both plans and documented rates; nothing was timed
measured_speed.json  the measured one
"""

from collections.abc import Iterable
from dataclasses import dataclass

from calib.artifact import json_artifact
from engines.build_folder.file_names import FP16_PLAN, MEASURED_SPEED, SPEED
from engines.build_folder.safe_files import REMAKE
from engines.layer_records import EngineEvidence, Layer
from engines.plan_kernels import PlanKernels, StepTotal, summarize_steps
from engines.roofline import RATES, EngineWork, SpeedUp, engine_work, estimate_speed_up

BATCHES = (1, 8)


@dataclass(frozen=True)
class Fp16Plan:
    """What one inference of the FP16 engine runs.

    Attributes:
        onnx_sha256: of the float graph that it was built from.
        plan: None without such an engine, or if it does not report its steps.
        work: of its steps, for an estimate; None likewise.
        reason: why there is none, "" if there is one.
    """

    onnx_sha256: str
    plan: PlanKernels | None
    work: EngineWork | None
    reason: str = ""


FP16_PLAN_ARTIFACT = json_artifact(FP16_PLAN, Fp16Plan, remake=REMAKE)


@dataclass(frozen=True)
class EngineTotals:
    """Steps and bytes of one inference, and its multiply-accumulates for one image."""

    steps: StepTotal
    int8_macs: int
    float_macs: int


@dataclass(frozen=True)
class TargetSpeed:
    """The expected speed-up on one target, of which `machine` is the module or card whose rates are used."""

    target: str
    machine: str
    batches: tuple[SpeedUp, ...]


@dataclass(frozen=True)
class SpeedEstimate:
    """An estimate from the plans of both engines; nothing was timed.

    Attributes:
        engine_sha256: of the INT8 engine.
        int8: what it runs; None if it does not report its steps. Likewise `fp16`, also without such an engine.
        targets: of each target with documented rates, the build's own first; empty without an estimate.
        reason: why an estimate is missing, "" if it is there.
    """

    engine_sha256: str
    int8: EngineTotals | None
    fp16: EngineTotals | None
    targets: tuple[TargetSpeed, ...]
    reason: str = ""


SPEED_ARTIFACT = json_artifact(SPEED, SpeedEstimate, remake=REMAKE)


@dataclass(frozen=True)
class MeasuredRatio:
    """Speed of a build in units of another's at one batch size, with the ends of its 95 % interval over `runs` pairs."""

    batch: int
    speed: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class MeasuredSpeed:
    """What `ufovit bench --against` measured.

    Attributes:
        engine_sha256: of the INT8 engine; `other_sha256` that of the engine it was compared with.
        precision: of the other engine.
        machine: that both ran on, in words.
    """

    engine_sha256: str
    other_sha256: str
    precision: str
    machine: str
    created: str
    batches: tuple[MeasuredRatio, ...]

    def sentences(self) -> tuple[str, ...]:
        """The result at each batch size, in words."""
        return tuple(
            f"{ratio.speed:.2f} times {self.precision.upper()}'s speed at batch {ratio.batch} "
            f"({ratio.low:.2f} to {ratio.high:.2f}, {ratio.runs} pairs)"
            for ratio in self.batches
        )


MEASURED_SPEED_ARTIFACT = json_artifact(
    MEASURED_SPEED, MeasuredSpeed, remake="ufovit bench BUILD --against FP16_BUILD --record"
)


def describe_fp16(onnx_sha256: str, evidence: EngineEvidence, layers: Iterable[Layer]) -> Fp16Plan:
    """The record of an FP16 engine, from what its plan shows and the layers of its graph."""
    plan = summarize_steps(evidence.steps)
    if plan is None:
        return Fp16Plan(onnx_sha256, None, None, "the FP16 engine does not report its steps")
    return Fp16Plan(onnx_sha256, plan, engine_work(evidence, layers))


def make_estimate(
    engine_sha256: str, evidence: EngineEvidence, layers: Iterable[Layer], fp16: Fp16Plan, target: str
) -> SpeedEstimate:
    """The expected speed-up of an INT8 engine on every target with documented rates, `target` first.

    `evidence` is what its plan shows, `layers` are those of its graph.
    """
    plan = summarize_steps(evidence.steps)
    other = None if fp16.plan is None or fp16.work is None else _totals(fp16.plan, fp16.work)
    if plan is None or fp16.work is None:
        return SpeedEstimate(engine_sha256, None, other, (), fp16.reason or "the INT8 engine does not report its steps")
    work = engine_work(evidence, layers)
    speeds = []
    for name, rates in sorted(RATES.items(), key=lambda item: item[0] != target):
        speed_ups = tuple(estimate_speed_up(work, fp16.work, rates, batch) for batch in BATCHES)
        speeds.append(TargetSpeed(name, rates.name, speed_ups))
    return SpeedEstimate(engine_sha256, _totals(plan, work), other, tuple(speeds))


def _totals(plan: PlanKernels, work: EngineWork) -> EngineTotals:
    return EngineTotals(plan.total, *work.macs())
