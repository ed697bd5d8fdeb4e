"""The JSON reports of `ufovit bench`: one build, or two compared."""

from dataclasses import dataclass, field
from datetime import datetime, timezone

from edge.bench.compare_builds import Ratio
from edge.bench.energy import Energy
from edge.bench.latency import Latency
from edge.bench.machine import Machine
from edge.bench.memory import Memory
from edge.runtime.open_build import OpenedBuild

REMAKE = "ufovit bench BUILD --json FILE"


@dataclass(frozen=True)
class MeasuredBuild:
    """A measured build, as its manifest records it, and what ran: see `edge.runtime.open_build.OpenedBuild`."""

    model: str
    precision: str
    target: str
    engine_sha256: str
    runner: str
    ran_on: str
    itself: bool
    image_shape: tuple[int, ...]
    random_weights: bool


@dataclass(frozen=True)
class BatchResult:
    """Results at one batch size.

    Attributes:
        latency: of a run from array to array: on a GPU, copies to and from it included.
        compute: of the engine alone on the GPU, copies excluded; None on a CPU.
        images_per_s: throughput of consecutive runs.
        energy: None where power is not measured.
    """

    batch: int
    latency: Latency
    compute: Latency | None
    images_per_s: float
    energy: Energy | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The circumstances of a measurement, part of every report; `threads` 0 is every core."""

    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    machine: Machine
    image: str = "the golden image of the build, repeated"
    threads: int
    warm_up: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchReport(Measurement):
    """`ufovit bench BUILD`; `power` names the monitor or the reason for none."""

    build: MeasuredBuild
    results: tuple[BatchResult, ...]
    memory: Memory
    power: str


@dataclass(frozen=True)
class PairResult:
    """Both builds at one batch size, run alternately; `ratio` is of their medians, the first build's over the second's."""

    batch: int
    ratio: Ratio
    first: Latency
    second: Latency


@dataclass(frozen=True, kw_only=True)
class ComparisonReport(Measurement):
    """`ufovit bench BUILD --against OTHER`: `first` is BUILD, `second` OTHER."""

    first: MeasuredBuild
    second: MeasuredBuild
    results: tuple[PairResult, ...]


def measured_build(opened: OpenedBuild) -> MeasuredBuild:
    """The record of an opened build."""
    manifest = opened.manifest
    return MeasuredBuild(
        manifest.model,
        manifest.precision,
        manifest.target,
        manifest.engine.sha256,
        opened.name,
        opened.ran_on,
        opened.itself,
        tuple(opened.golden.tensor.shape),
        manifest.random_weights,
    )
