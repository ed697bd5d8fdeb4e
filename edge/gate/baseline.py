"""The baseline of the regression gate: figures of a reviewed build, and how much a later build may lose, with reasons.

    identity      what the figures were measured on; a build that differs in any of it is refused
    origin        where they come from: shown, not compared
    measured      the figures, and every answer of the task, so that accuracy is compared image by image, where only the
                  answers that changed contribute noise
    tolerances    largest loss allowed, with a reason; may be edited by hand
    seal          digest of the first three, so that an edited figure is noticed; a review of the file notices an edited seal

Paths, file names and dates differ between machines and are not part of the identity.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from calib.artifact import parse_artifact
from calib.errors import ArtifactError, DataError, InputError
from calib.files import canonical_json, read_regular, sha256_bytes
from calib.json_reader import LARGEST_JSON_BYTES, describe_damage, parse_json
from edge.gate.gate_tolerances import NETWORK_QUANTITIES, QUANTITIES, STEP_QUANTITIES
from edge.stability.verdict import Stability
from edge.tasks.gate_row import Recorded, Tolerance
from edge.tasks.registry import load_task

REMAKE = "ufovit gate BUILD --baseline {} --update"
_LARGEST_LOG2 = 150  # of FP32
RESTORE = "git restore {}, or another copy of the reviewed file"
_REPAIRS = (
    ("Git LFS", "git lfs pull"),
    ("byte order mark", "save {0} as UTF-8 without a byte order mark, or git restore {0}"),
    (
        "merge conflict",
        "git checkout --ours {0} (or --theirs), or git restore {0} where no merge is open",
    ),
)
"""What a damaged file is -> the step that restores it; `RESTORE` for any other damage."""


@dataclass(frozen=True)
class Identity:
    """What must be equal for two builds to be compared; fields as in the manifest, else as follows.

    Attributes:
        checkpoint_sha256: None for random weights.
        meaning: what else must be equal for the task, such as a digest of the class names.
        data_sha256: of the judged images, right answers included; `images` is their number.
        judged: name of the file that was judged: the engine, or the graph that it was built from.
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
    """The build that the figures come from. Its `verdict` is "pass" unless the baseline was forced."""

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
    """Margins of an XNorm in FP16, in bits: to overflow, and to the smallest normal number (None: not measured)."""

    headroom_bits: float
    floor_bits: float | None


@dataclass(frozen=True)
class XNormMargins:
    """The certificate's verdict, and the margins of each XNorm by name."""

    verdict: Stability
    sites: dict[str, Margin]


@dataclass(frozen=True)
class NetworkMargins:
    """What the certificate of the whole network says.

    Attributes:
        headroom_bits: kind of site -> least headroom in FP16; kinds with nothing to hold are left out, and XNorms, which have
            their own.
        unjudged: places that the verdict does not cover.
        islands: sites that compute in FP32.
        emulated_sqnr_db: of the emulated FP16 network; None where it was not emulated, or no output is finite.
    """

    verdict: Stability
    headroom_bits: dict[str, float]
    unjudged: int
    islands: int
    emulated_sqnr_db: float | None


@dataclass(frozen=True)
class Scales:
    """log2 of the quantization scales in the graph, by tensor; for weights of the geometric mean over the channels.

    Attributes:
        made: calibration method and refinements; scales of different methods are not comparable.
        folds_sha256: of the exponents that the certificate folded into weights; others change scales by powers of two.

    Raises DataError for a scale that is not a number of FP32.
    """

    made: str
    folds_sha256: str
    activations: dict[str, float]
    weights: dict[str, float]

    def __post_init__(self) -> None:
        for name, log2 in (*self.activations.items(), *self.weights.items()):
            if math.isfinite(log2) and abs(log2) > _LARGEST_LOG2:
                raise DataError("invalid scale", where=name[:80], found=log2, allowed=f"log2 of up to {_LARGEST_LOG2}")


@dataclass(frozen=True)
class LatencyRatio:
    """Latency of the engine divided by that of FP32, measured alternately on one device: smaller is faster.

    `low` and `high` are the ends of a confidence interval over `runs` pairs. Raises DataError for an impossible ratio.
    """

    ratio: float
    low: float
    high: float
    runs: int

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.ratio <= self.high < math.inf and self.runs > 0):
            allowed = "0 < low <= ratio <= high, at least one run"
            raise DataError("invalid latency ratio", where="--latency", found=asdict(self), allowed=allowed)


@dataclass(frozen=True)
class StepFigures:
    """What one inference runs, read from the engine: numbers of steps, and the bytes that they move for one image."""

    steps: int
    reformats: int
    pads: int
    moved_bytes: int


@dataclass(frozen=True)
class BaselineFigures:
    """The figures of a build.

    Attributes:
        answers: what the task records.
        share: of the multiply-accumulates that run in the precision of the build, read from the engine.
        scales: None where nothing is quantized, or onnx is not installed.
        xnorm: None for "fp32", which is not certified.
        latency: None where nothing was timed.
        steps: None where the engine does not report them, and in baselines written before they were recorded.
        network: None where the whole network was not certified; baselines of earlier releases have none.
    """

    answers: Recorded
    share: float
    engine_bytes: int
    scales: Scales | None
    xnorm: XNormMargins | None
    latency: LatencyRatio | None
    steps: StepFigures | None = None
    network: NetworkMargins | None = None


@dataclass(frozen=True)
class Baseline:
    """A file written by `ufovit gate --update`; see the top of this file."""

    schema_version: ClassVar[int] = 2  # 2: with `task`, whose figures and answers stand together

    identity: Identity
    origin: Origin
    measured: BaselineFigures
    tolerances: dict[str, Tolerance]
    seal: str
    reviewed_by: str = ""
    note: str = ""

    def digest(self) -> str:
        """What `seal` must be: the digest of everything but the tolerances."""
        measured = asdict(self.measured)
        if self.measured.steps is None:
            del measured["steps"]  # so that the seal of a baseline without steps is what it was
        if self.measured.network is None:
            del measured["network"]  # so that the seals of earlier releases hold
        return sha256_bytes(canonical_json([asdict(self.identity), asdict(self.origin), measured]))


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline. Raises ArtifactError for a missing, damaged or altered one.

    The next command restores a damaged file: `--update` would replace figures and tolerances that somebody reviewed. That is
    named only for a file that does not exist yet, and for one of an earlier version.
    """
    update = REMAKE.format(path)
    data = read_regular(path, largest=LARGEST_JSON_BYTES, remake=RESTORE.format(path) if path.exists() else update)
    restore = _restore(data, path)
    baseline = parse_artifact(data, path, Baseline, remake=update if _is_outdated(data, path) else restore)
    try:
        sealed, task = baseline.digest(), load_task(baseline.identity.task)
    except InputError as error:
        found = " ".join(str(error).split())
        raise ArtifactError("malformed artifact", where=path, found=found, next_command=restore) from error
    if sealed != baseline.seal:
        raise ArtifactError(
            "the baseline's figures were edited: they do not match its seal",
            where=path,
            allowed="edit tolerances, reasons, reviewed_by and note; figures come from a build",
            next_command=restore,
        )
    of_network = NETWORK_QUANTITIES if baseline.measured.network else frozenset()
    of_steps = STEP_QUANTITIES if baseline.measured.steps else frozenset()
    quantities = QUANTITIES | of_network | of_steps | set(task.quantities)
    if baseline.tolerances.keys() != quantities:
        found, allowed = ", ".join(sorted(baseline.tolerances)), ", ".join(sorted(quantities))
        raise ArtifactError("the baseline's tolerances do not match its quantities", where=path, found=found, allowed=allowed)
    for name, entry in baseline.tolerances.items():
        if not (0 <= entry.tolerance < math.inf) or not entry.reason.strip():
            allowed = "a finite number, 0 or more, and a sentence that gives the reason"
            raise ArtifactError("invalid tolerance", where=f"{path}, {name}", found=asdict(entry), allowed=allowed)
    return baseline


def is_outdated(path: Path) -> bool:
    """Whether a baseline is of an earlier version, which only an update can replace. Raises ArtifactError for no JSON file."""
    return _is_outdated(read_regular(path, largest=LARGEST_JSON_BYTES, remake=RESTORE.format(path)), path)


def _restore(data: bytes, path: Path) -> str:
    """The step that restores a baseline of these bytes, should they turn out to be damaged."""
    what = describe_damage(data) or ""
    return next((step for cause, step in _REPAIRS if cause in what), RESTORE).format(path)


def _is_outdated(data: bytes, path: Path) -> bool:
    version = parse_json(data, path, remake=_restore(data, path)).get("schema_version")
    return isinstance(version, int) and version < Baseline.schema_version
