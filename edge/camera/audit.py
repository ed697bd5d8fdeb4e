"""`--audit N`: every Nth result again by the build's FP32 `model.onnx`, on one CPU thread outside the loop."""

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from calib.artifact import SCHEMA_VERSION
from calib.errors import ArtifactError, MissingError, UfovitError
from calib.files import atomic_path, write_json
from edge.camera.background_sink import BackgroundSink
from edge.camera.frame import Notify, Result, ignore
from edge.images.preprocess import Preprocess, Uint8
from edge.runtime.ort_runner import OrtRunner
from edge.runtime.runner import Runner
from edge.tasks.interval import share_interval
from edge.tasks.registry import task_of
from edge.tasks.task import Outputs
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest

MAX_SAVED = 100
"""Disagreements saved per run: enough to look at, without filling the disk."""


@dataclass(frozen=True)
class AuditStatus:
    """Frames compared, of these equal (shown with the Wilson interval), skipped because the audit was late, and saved."""

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


class AuditWorker:
    """Compares with `reference`, and saves disagreements in `folder`, which is created for the first one."""

    def __init__(
        self,
        reference: Runner,
        preprocess: Preprocess,
        manifest: EngineManifest,
        source: str,
        folder: Path,
        notify: Notify = ignore,
        max_saved: int = MAX_SAVED,
    ) -> None:
        self._reference, self._preprocess, self._manifest, self._source = reference, preprocess, manifest, source
        self._folder, self._notify, self._max_saved = folder, notify, max_saved
        self._task = task_of(manifest)
        self.compared = self.agreed = self.saved = 0

    def process(self, result: Result) -> None:
        """Compare one result."""
        reference = self._reference(self._preprocess(result.frame.pixels)[None])
        agrees = self._task.agree(reference, result.outputs)
        self.compared += 1
        self.agreed += agrees
        if not agrees and self.saved < self._max_saved:
            try:
                self._save(result, reference)
            except UfovitError as error:
                self._max_saved = 0
                self._notify(f"audit: {error}\n  disagreeing frames are counted, but no longer saved")

    def close(self) -> None:
        """Release the reference."""
        self._reference.close()

    def _save(self, result: Result, reference: Outputs) -> None:
        """Write a picture of the frame, and beside it a record with both answers as the task describes them."""
        stem = f"frame-{result.frame.number:09d}"
        write_png(self._folder / f"{stem}.png", result.frame.pixels)
        record = {
            "schema_version": SCHEMA_VERSION,
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "source": self._source,
            "frame": result.frame.number,
            "picture": f"{stem}.png",
            "engine_sha256": self._manifest.engine.sha256,
            "reference_sha256": self._manifest.onnx.sha256,
            **self._task.disagreement(reference, result.outputs),
        }
        write_json(self._folder / f"{stem}.json", record)
        self.saved += 1


class Audit(BackgroundSink):
    """A sink that passes every Nth result to the audit's own thread."""

    def __init__(self, worker: AuditWorker, every: int, notify: Notify = ignore, capacity: int = 4) -> None:
        self._audited, self._every = worker, every
        super().__init__("audit", worker.process, worker.close, capacity=capacity, notify=notify, close_timeout_s=5.0)

    def __call__(self, result: Result, /) -> None:
        """See `Sink`."""
        if result.number % self._every == 0:
            super().__call__(result)

    @property
    def status(self) -> AuditStatus:
        """The counts so far."""
        worker = self._audited
        return AuditStatus(worker.compared, worker.agreed, self.skipped, worker.saved)


def open_reference(build: BuildFolder) -> Runner:
    """The FP32 graph of a build on one CPU thread; the bytes that run are the bytes that were hashed."""
    manifest = build.manifest
    path = build.path / manifest.onnx.file
    if not build.has(manifest.onnx.file):
        why = "the FP32 graph is missing" if manifest.bundle is None else "a build from a bundle has no FP32 graph"
        raise ArtifactError(
            f"nothing to audit against: {why}",
            where=path,
            next_command="run without --audit, or audit the build that the bundle was made from, on its own machine",
        )
    return OrtRunner(path, threads=1, data=build.data(manifest.onnx.file))


def write_png(path: Path, pixels: Uint8) -> None:
    """Write uint8 (H, W, 3) RGB atomically. Raises MissingError without Pillow or room on the disk."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingError("pillow is not installed", next_command="pip install 'ufovit-edge[build]'") from error
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def audit_folder(parent: Path, now: datetime) -> Path:
    """Where a run saves its disagreements: one folder per run."""
    return parent / now.strftime("%Y%m%dT%H%M%SZ")
