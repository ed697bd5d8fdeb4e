"""speed.json: what the FP16 engine of the same network runs, and how fast the INT8 engine is expected to be beside it."""

from collections.abc import Iterable
from dataclasses import dataclass

from calib.artifact import json_artifact
from engines.build_folder.file_names import SPEED
from engines.build_folder.safe_files import REMAKE
from engines.layer_records import EngineEvidence, Layer
from engines.plan_kernels import PlanKernels, summarize_steps
from engines.roofline import RATES, SpeedUp, engine_work, estimate_speed_up

BATCHES = (1, 8)


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
        fp16: what one inference of the FP16 engine runs; None where there can be none.
        targets: of each target with documented rates, the build's own first; empty likewise.
        reason: why there is no estimate, "" if there is one.
    """

    engine_sha256: str
    fp16: PlanKernels | None
    targets: tuple[TargetSpeed, ...]
    reason: str = ""


SPEED_ARTIFACT = json_artifact(SPEED, SpeedEstimate, remake=REMAKE)


def estimate_targets(
    int8: EngineEvidence, fp16: EngineEvidence, layers: Iterable[Layer], target: str
) -> tuple[TargetSpeed, ...]:
    """The expected speed-up of a network on every target with documented rates, `target` first.

    `layers` are those of the INT8 graph, whose names and products are also those of the FP16 graph. Raises ValueError for an
    engine whose steps are not known.
    """
    layers = tuple(layers)
    speeds = []
    for name, rates in sorted(RATES.items(), key=lambda item: item[0] != target):
        engines = [engine_work(evidence, layers, rates) for evidence in (int8, fp16)]
        speed_ups = tuple(estimate_speed_up(engines[0], engines[1], rates, batch) for batch in BATCHES)
        speeds.append(TargetSpeed(name, rates.name, speed_ups))
    return tuple(speeds)


def make_estimate(
    engine_sha256: str, int8: EngineEvidence, fp16: EngineEvidence, layers: Iterable[Layer], target: str
) -> SpeedEstimate:
    """The record of an estimate."""
    plan = summarize_steps(fp16.steps)
    if plan is None or not int8.steps:
        return SpeedEstimate(engine_sha256, plan, (), "an engine does not report its steps")
    return SpeedEstimate(engine_sha256, plan, estimate_targets(int8, fp16, layers, target))
