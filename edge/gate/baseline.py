"""A baseline: what a reviewed build measured, what a later one may lose against it, and why that much.

    identity      what the figures are figures of; a build that differs in any of it is refused
    origin        where they come from: shown, not compared
    measured      the figures, and of the task every answer, so that an accuracy is compared image by image, in which only the
                  answers that changed are chance
    tolerances    what may be lost, one sentence each; a person's to edit
    seal          digest of the first three, so that a figure cannot be edited without notice; whoever edits the seal too is
                  what a review of the file is for

Paths, names and dates differ between machines and stand nowhere in the identity.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from calib.artifact import read_artifact
from calib.errors import InputError
from calib.files import canonical_json, sha256_bytes
from edge.gate.gate_tolerances import QUANTITIES
from edge.stability.verdict import Stability
from edge.tasks.gate_row import Recorded, Tolerance
from edge.tasks.registry import load_task

REMAKE = "ufovit gate BUILD --baseline {} --update"


@dataclass(frozen=True)
class Identity:
    """What must be the same for two builds to be compared.

    Attributes:
        model, precision, target, task, random_weights: as in the manifest.
        checkpoint_sha256: None for weights drawn at random.
        meaning: what else the task needs to be the same, such as a digest of the class names.
        data_sha256: images that judged, right answers included; `images` is how many.
        preprocess_sha256: what they went through.
        judged: name of the file that answered: the engine, or the graph that it was built from.
    """

    model: str
    precision: str
    target: str
    task: str
    random_weights: bool
    checkpoint_sha256: str | None
    meaning: dict[str, Any]
    data_sha256: str
    images: int
    preprocess_sha256: str
    judged: str


@dataclass(frozen=True)
class Origin:
    """Where the figures come from. `verdict` is the build's own, "pass" unless the baseline was forced."""

    created: str
    toolkit: str
    backend: str
    backend_version: str
    engine_sha256: str
    onnx_sha256: str
    calibration_data_sha256: str | None
    verdict: str


@dataclass(frozen=True)
class Margin:
    """Room of an XNorm in FP16, in bits: below overflow, and above the smallest normal number (None: nothing measured)."""

    headroom_bits: float
    floor_bits: float | None


@dataclass(frozen=True)
class XNormMargins:
    """The certificate's verdict, and the room of each XNorm by name."""

    verdict: Stability
    sites: dict[str, Margin]


@dataclass(frozen=True)
class Scales:
    """Quantization scales as the graph holds them, log2.

    Attributes:
        made: calibration method and refinements: scales of another are not comparable.
        folds_sha256: of the exponents that the certificate folded into weights; other ones move scales by powers of two.
        activations: tensor -> log2 of its scale.
        weights: tensor -> log2 of the geometric mean of its channels' scales.
    """

    made: str
    folds_sha256: str
    activations: dict[str, float]
    weights: dict[str, float]


@dataclass(frozen=True)
class LatencyRatio:
    """Time of the engine in units of that of FP32, both measured in turn on one device: smaller is faster.

    `low` and `high` are the ends of a confidence interval over `runs` pairs. Raises InputError for what cannot be one.
    """

    ratio: float
    low: float
    high: float
    runs: int

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.ratio <= self.high < math.inf and self.runs > 0):
            raise InputError("no latency ratio", found=asdict(self), allowed="0 < low <= ratio <= high, at least one run")


@dataclass(frozen=True)
class Measured:
    """The figures of a build.

    Attributes:
        answers: what the task records.
        share: of the multiply-accumulates that run in the precision of the build, read from the engine.
        engine_bytes: size of the engine file.
        scales: None where nothing is quantized, or nothing here can read the graph.
        xnorm: None for "fp32", which is not certified.
        latency: None where nothing was timed.
    """

    answers: Recorded
    share: float
    engine_bytes: int
    scales: Scales | None
    xnorm: XNormMargins | None
    latency: LatencyRatio | None


@dataclass(frozen=True)
class Baseline:
    """A file of `ufovit gate --update`; see the top of this file."""

    schema_version: ClassVar[int] = 2  # 2: with `task`, whose figures and answers stand together

    identity: Identity
    origin: Origin
    measured: Measured
    tolerances: dict[str, Tolerance]
    seal: str
    reviewed_by: str = ""
    note: str = ""


def seal(identity: Identity, origin: Origin, measured: Measured) -> str:
    """Digest of what was measured on what."""
    return sha256_bytes(canonical_json([asdict(identity), asdict(origin), asdict(measured)]))


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline, which holds a tolerance for every quantity. Raises InputError, naming `--update`."""
    remake = REMAKE.format(path)
    baseline = read_artifact(path, Baseline, remake=remake)
    try:
        sealed = seal(baseline.identity, baseline.origin, baseline.measured)
    except ValueError as error:
        raise InputError("the baseline holds no finite number", where=path, found=error, next_command=remake) from error
    if sealed != baseline.seal:
        raise InputError(
            "the baseline's figures were edited: they are not what its seal says",
            where=path,
            allowed="edit tolerances, reasons, reviewed_by and note; figures come from a build",
            next_command=remake,
        )
    quantities = QUANTITIES | set(load_task(baseline.identity.task).quantities)
    if baseline.tolerances.keys() != quantities:
        found, allowed = ", ".join(sorted(baseline.tolerances)), ", ".join(sorted(quantities))
        raise InputError("the baseline's tolerances are not those asked for", where=path, found=found, allowed=allowed)
    for name, entry in baseline.tolerances.items():
        if not (0 <= entry.tolerance < math.inf) or not entry.reason.strip():
            raise InputError(
                "no tolerance with a reason",
                where=f"{path}, {name}",
                found=asdict(entry),
                allowed="a finite number, 0 or more, and a sentence that says why",
            )
    return baseline
