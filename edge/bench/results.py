"""What `ufovit bench` writes: one build, or two in turn."""

from __future__ import annotations

from dataclasses import dataclass

from edge.bench.compare_builds import Ratio
from edge.bench.energy import Energy
from edge.bench.latency import Latency
from edge.bench.machine import Machine
from edge.bench.memory import Memory
from edge.runtime.open_build import OpenedBuild

IMAGE = "the golden image of the build, repeated"
REMAKE = "ufovit bench BUILD --json FILE"


@dataclass(frozen=True)
class MeasuredBuild:
    """What was measured.

    Attributes:
        model, precision, target, engine_sha256: as in the manifest.
        runner: "ort", "openvino" or "trt".
        ran_on: what ran what; says when it is the graph and not the engine itself.
        itself: whether that is the engine.
        image_shape: of one image as the network takes it.
        random_weights: whether the weights were drawn.
    """

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
    """One batch size.

    Attributes:
        batch: images per run.
        latency: of a run from array to array: on a GPU, copies to and from it included.
        compute: of the engine alone on the GPU, copies excluded; None on a CPU.
        images_per_s: of one run after the other.
        energy: None where power is not measured.
    """

    batch: int
    latency: Latency
    compute: Latency | None
    images_per_s: float
    energy: Energy | None


@dataclass(frozen=True)
class BenchReport:
    """`ufovit bench BUILD`; `power` is a sentence, `warm_up` runs were not counted, `threads` 0 is every core."""

    created: str
    build: MeasuredBuild
    machine: Machine
    image: str
    threads: int
    warm_up: int
    results: tuple[BatchResult, ...]
    memory: Memory
    power: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairResult:
    """Both builds at one batch size, run in turn; `ratio` is of their medians, the first build's over the second's."""

    batch: int
    ratio: Ratio
    first: Latency
    second: Latency


@dataclass(frozen=True)
class ComparisonReport:
    """`ufovit bench BUILD --against OTHER`: `first` is BUILD, `second` OTHER."""

    created: str
    first: MeasuredBuild
    second: MeasuredBuild
    machine: Machine
    image: str
    threads: int
    warm_up: int
    results: tuple[PairResult, ...]
    notes: tuple[str, ...] = ()


def measured_build(opened: OpenedBuild) -> MeasuredBuild:
    """What an opened build is."""
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
