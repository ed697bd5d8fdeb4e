"""`--audit N`: does the engine still answer as the FP32 network does, on what this camera sees?

Every Nth result is answered again by `model.onnx`, the FP32 reference of the build, on the CPU, one thread, away from the loop.
Agreement is the share of equal answers with its Wilson interval (`edge.drift.drop_interval`). Frames that disagree are kept as
a picture and a record with both answers. An audit that falls behind skips; it never slows the camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from calib.artifact import write_artifact
from calib.errors import InputError, MissingError, UfovitError
from calib.files import atomic_path
from edge.camera.background_sink import Background
from edge.camera.frame import Result
from edge.camera.loop import softmax
from edge.drift.drop_interval import share_interval
from edge.images.preprocess import Preprocess, Uint8
from edge.runtime.runner import Runner
from engines.build_folder.manifest import EngineManifest, read_recorded
from engines.build_folder.safe_files import is_there

MOST_SAVED = 100
"""Disagreements kept per run: enough to look at, never the whole disk."""


@dataclass(frozen=True)
class Disagreement:
    """The record beside the picture of a frame that was answered in two ways.

    Attributes:
        time: ISO 8601, UTC.
        source: where the frame came from, without passwords.
        frame: its number.
        picture: file name of its pixels.
        engine_answer, reference_answer: labels.
        engine_probability, reference_probability: softmax of each side for its own answer.
        engine_logits, reference_logits: of all classes.
        labels: of the classes.
        engine_sha256, reference_sha256: digests of the two.
    """

    time: str
    source: str
    frame: int
    picture: str
    engine_answer: str
    reference_answer: str
    engine_probability: float
    reference_probability: float
    engine_logits: tuple[float, ...]
    reference_logits: tuple[float, ...]
    labels: tuple[str, ...]
    engine_sha256: str
    reference_sha256: str


@dataclass(frozen=True)
class Standing:
    """How an audit stands: frames compared, of these agreed, left out because it was behind, and saved."""

    compared: int = 0
    agreed: int = 0
    skipped: int = 0
    saved: int = 0

    def __str__(self) -> str:
        if not self.compared:
            return f"nothing compared yet, {self.skipped} skipped"
        interval = share_interval(self.agreed, self.compared)
        return (
            f"{self.agreed} of {self.compared} answers as FP32, {self.agreed / self.compared:.2%} "
            f"[{interval.low_points:.2f}, {interval.high_points:.2f}], {self.skipped} skipped, {self.saved} saved"
        )


@dataclass(frozen=True)
class Audited:
    """What an audit is about: the FP32 reference, its preprocessing, and the names that records carry."""

    reference: Runner
    preprocess: Preprocess
    manifest: EngineManifest
    source: str


class AuditWork:
    """Work of a `Background`: compares, and saves what disagrees in `folder`, which is made for the first one."""

    def __init__(
        self, about: Audited, folder: Path, say: Callable[[str], None] = lambda _text: None, most_saved: int = MOST_SAVED
    ) -> None:
        self._about, self._folder, self._say, self._most_saved = about, folder, say, most_saved
        self._saving = True
        self.compared = self.agreed = self.saved = 0

    def begin(self) -> None:
        """See `Work`."""

    def take(self, result: Result) -> None:
        """See `Work`."""
        logits = self._about.reference(self._about.preprocess(result.frame.pixels)[None])[0]
        agrees = int(logits.argmax()) == int(result.logits.argmax())
        self.compared += 1
        self.agreed += agrees
        if not agrees and self._saving and self.saved < self._most_saved:
            try:
                self._save(result, logits)
            except UfovitError as error:
                self._saving = False
                self._say(f"audit: {error}\n  frames that disagree are counted, and saved no more")

    def end(self) -> None:
        """See `Work`."""
        self._about.reference.close()

    def _save(self, result: Result, logits: np.typing.NDArray[np.float32]) -> None:
        about, labels = self._about, self._about.manifest.labels
        stem = f"frame-{result.frame.number:09d}"
        write_png(self._folder / f"{stem}.png", result.frame.pixels)
        engine, reference = int(result.logits.argmax()), int(logits.argmax())
        record = Disagreement(
            time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            source=about.source,
            frame=result.frame.number,
            picture=f"{stem}.png",
            engine_answer=labels[engine],
            reference_answer=labels[reference],
            engine_probability=float(result.probabilities[engine]),
            reference_probability=float(softmax(logits)[reference]),
            engine_logits=tuple(float(v) for v in result.logits),
            reference_logits=tuple(float(v) for v in logits),
            labels=labels,
            engine_sha256=about.manifest.engine.sha256,
            reference_sha256=about.manifest.onnx.sha256,
        )
        write_artifact(self._folder / f"{stem}.json", record)
        self.saved += 1


class Audit:
    """A sink that hands every Nth result to the audit's own thread."""

    def __init__(self, work: AuditWork, every: int, say: Callable[[str], None] = lambda _text: None, room: int = 4) -> None:
        if every < 1:
            raise InputError("audit of no frame", where="--audit", found=every, allowed="1 or more: every Nth result")
        self._work, self._every = work, every
        self._background = Background("audit", work, room=room, say=say, patience_s=5.0)

    def __call__(self, result: Result, /) -> None:
        """See `Sink`."""
        if result.number % self._every == 0:
            self._background(result)

    def close(self) -> None:
        """See `Sink`."""
        self._background.close()

    @property
    def standing(self) -> Standing:
        """How it stands."""
        work = self._work
        return Standing(work.compared, work.agreed, self._background.skipped, work.saved)


def open_reference(folder: Path, manifest: EngineManifest) -> Runner:
    """The FP32 graph of a build on one CPU thread; the bytes that run are those that were hashed.

    Raises InputError for a build that has none or another one, MissingError without ONNX Runtime.
    """
    from edge.runtime.ort_runner import OrtRunner

    path = folder / manifest.onnx.file
    if not is_there(path):
        why = "a build from a bundle has no FP32 graph" if manifest.bundle is not None else "the FP32 graph is not there"
        raise InputError(
            f"nothing to audit against: {why}",
            where=path,
            next_command="run without --audit, or audit the build that the bundle was made of, on its own machine",
        )
    return OrtRunner(path, threads=1, data=read_recorded(folder, manifest.onnx))


def write_png(path: Path, pixels: Uint8) -> None:
    """Write uint8 (H, W, 3), red, green, blue, atomically. Raises MissingError without Pillow or room on the disk."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingError("pillow is not installed", next_command="pip install 'ufovit-edge[build]'") from error
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def audit_folder(parent: Path, now: datetime) -> Path:
    """Where a run keeps its disagreements: a folder per run, so that none overwrites another's."""
    return parent / now.strftime("%Y%m%dT%H%M%SZ")
