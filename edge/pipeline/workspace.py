"""The build folder that is being written: one writer at a time, steps that run only when something they read has changed.

`steps.json` (`engines.build_folder.step_record`) records, for every step, the digest of what it read (inputs, parameters,
versions, the toolkit's own source) and of each file it wrote. A step whose record still holds is reused; a record whose
seal does not match counts as none. A step that must run writes into a folder of its own (`edge.pipeline.staging`); when all
its files are complete, they replace the old ones, and those of every later step and the folder's signature are removed. A step
that fails leaves the folder as it was; a folder never shows a verdict about files that are gone or replaced, also after a kill.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from calib.errors import InputError, MissingError, UsageError, VerdictError
from calib.files import canonical_json, sha256_bytes, sha256_file
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.pipeline.staging import deleted_error, settle, staged
from edge.progress import Advance, Progress
from edge.tasks.interval import Verdict
from engines.build_folder.file_names import ARTIFACTS, CALIBRATION, CERTIFICATE, EXPORT, IMPORT, MANIFEST, XNORM
from engines.build_folder.file_names import RECORD as RECORD  # noqa: PLC0414  # the repeated name marks a re-export
from engines.build_folder.folder import BuildFolder
from engines.build_folder.references import agree_with_record
from engines.build_folder.step_record import StepRecord, read_record, write_record
from engines.build_folder.under_construction import finishing, mark_under_construction

RANDOM_WEIGHTS_NOTICE = "RANDOM WEIGHTS: nothing below says anything about accuracy; every artifact is stamped"
_LOCK = ".lock"
_READ_LATER = (EXPORT, IMPORT, CERTIFICATE, XNORM, CALIBRATION)


@dataclass(frozen=True)
class Step:
    """A step of a build: `run(folder, advance)` writes the files named in `writes` into that folder.

    `reads` holds the digests, parameters and versions that decide what it writes, as plain JSON values.
    """

    name: str
    reads: dict[str, Any]
    writes: tuple[str, ...]
    run: Callable[[Path, Advance], object]


@dataclass(frozen=True)
class BuildOutcome:
    """A finished build: its folder, the verdict on accuracy, the steps that ran and those that were reused."""

    folder: Path
    verdict: Verdict
    ran: tuple[str, ...]
    reused: tuple[str, ...]


@lru_cache(maxsize=1)
def toolkit_sha256() -> str:
    """Digest of the toolkit's own source: after a change of the code every step runs again."""
    root = Path(__file__).resolve().parents[2]
    sources = sorted(
        p for name in ("calib", "engines", "edge") for p in (root / name).rglob("*") if p.suffix in (".py", ".html")
    )
    content = "".join(f"{p.relative_to(root)} {sha256_file(p)}\n" for p in sources)
    return sha256_bytes(content.encode())


@dataclass
class Workspace:
    """An opened and locked build folder.

    Attributes:
        artifacts: every file that a build can write here, in the order of the flow.
        before_change: called with the first step that has to run, before it runs.
        reused: names of the steps that did not have to run, in order.
        ran: names of the steps that ran, in order.
    """

    folder: Path
    artifacts: tuple[str, ...]
    force: bool = False
    before_change: Callable[[str], None] = lambda _step: None
    reused: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        folder: Path,
        artifacts: tuple[str, ...],
        *,
        force: bool,
        on_wait: Callable[[str], None],
        before_change: Callable[[str], None] = lambda _step: None,
    ) -> Iterator[Workspace]:
        """Create and lock the folder. While another build holds the lock, report it through `on_wait` and wait.

        Raises MissingError when the folder cannot be written, or cannot be locked (some network file systems); UsageError
        when it contains files with a build's names that no build wrote: they would be lost.
        """
        foreign = [] if (folder / _LOCK).exists() else [file for file in artifacts if (folder / file).exists()]
        if foreign:  # a build's lock file always stays
            raise UsageError(
                "the folder contains files that no build wrote and that this build would replace",
                where=folder,
                found=", ".join(foreign),
                allowed="a new folder, or one of an earlier build",
                next_command="choose another --out, or move these files away",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise MissingError(
                "output folder cannot be written", where=folder, found=error.strerror, next_command="choose another --out"
            ) from error
        with os.fdopen(descriptor):  # closing it also releases the lock
            _lock(descriptor, folder, on_wait)
            settle(folder, artifacts)
            for name in (*artifacts, RECORD):
                for leftover in folder.glob(f".{name}.*.tmp"):  # of a killed build, as `calib.files.atomic_path` names them
                    leftover.unlink(missing_ok=True)
            with _noticing_deletion(folder), finishing(folder):
                yield cls(folder, artifacts, force, before_change)

    def run(self, step: Step, progress: Progress) -> bool:
        """Run a step, or reuse what it wrote earlier, files out of `artifacts`. True when it ran.

        A step that raises leaves the folder as it was. One that fails a check of the build itself (VerdictError before there is
        a manifest) removes what followed earlier: an engine that was built otherwise does not stand for one that failed.
        """
        record = self._record()
        digest = sha256_bytes(canonical_json({**step.reads, "toolkit": toolkit_sha256()}))
        if not self.force and self._holds(record, step, digest):
            self.reused.append(step.name)
            progress.say(f"  {step.name}: unchanged, reused")
            return False
        if not self.ran:
            self._require_files()
            self.before_change(step.name)
        record = {name: entry for name, entry in record.items() if name in (*self.reused, *self.ran)}
        failed: VerdictError | None = None
        with staged(self.folder) as staging:
            try:
                with progress.task(step.name) as advance:
                    step.run(staging, advance)
                record[step.name] = StepRecord(digest, {file: sha256_file(staging / file) for file in step.writes})
            except VerdictError as error:
                if any(MANIFEST in entry.writes for entry in record.values()):
                    raise
                failed = error
            write_record(staging, record)
        mark_under_construction(self.folder)
        settle(self.folder, self.artifacts)
        if failed is not None:
            raise failed
        self.ran.append(step.name)
        return True

    def outcome(self) -> BuildOutcome:
        """The outcome of the steps so far, drift among them."""
        verdict = BuildFolder(self.folder, building=True).read(DRIFT_ARTIFACT).verdict
        return BuildOutcome(self.folder, verdict, tuple(self.ran), tuple(self.reused))

    def sha256(self, file: str) -> str:
        """Digest of a file that a step of this run wrote or reused."""
        for entry in self._record().values():
            if file in entry.writes:
                return entry.writes[file]
        return sha256_file(self.folder / file)

    def made(self, file: str) -> bool:
        """Whether a step of this run wrote or reused a file."""
        done = (*self.reused, *self.ran)
        return any(file in entry.writes for name, entry in self._record().items() if name in done)

    def _record(self) -> dict[str, StepRecord]:
        try:
            return read_record(self.folder)
        except InputError:  # no record, a damaged one, or one of another release: every step runs again
            return {}

    def _holds(self, record: dict[str, StepRecord], step: Step, reads: str) -> bool:
        """Whether a step was run on the same inputs, and its files are those that it wrote."""
        entry = record.get(step.name)
        if entry is None or entry.reads != reads or set(entry.writes) != set(step.writes):
            return False
        paths = {file: self.folder / file for file in step.writes}
        if not all(path.is_file() and not path.is_symlink() for path in paths.values()):  # `ufovit verify` refuses a link too
            return False
        recorded = {file: digest for entry in record.values() for file, digest in entry.writes.items()}
        same = all(sha256_file(path) == entry.writes[file] for file, path in paths.items())
        return same and agree_with_record(self.folder, step.writes, recorded) and self._can_be_read(step)

    def _can_be_read(self, step: Step) -> bool:
        """Whether later steps can read what this one wrote: a record can be made to fit what nothing can read."""
        from edge.inspect.describers import can_be_read

        return all(can_be_read(self.folder / file) for file in step.writes if file in _READ_LATER)

    def _require_files(self) -> None:
        """Raise UsageError for a folder under the name of a file that is written or removed."""
        for file in (*self.artifacts, RECORD):
            path = self.folder / file
            if path.is_dir() and not path.is_symlink():
                raise UsageError("a folder has the name of a file of the build", where=path, next_command="move it away")


@contextlib.contextmanager
def locked(folder: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a build folder, and finish what a kill interrupted. A copy, which has no lock file, is not locked.

    Raises MissingError.
    """
    if not (folder / _LOCK).exists():
        settle(folder, ARTIFACTS)
        with finishing(folder):
            yield
        return
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except OSError as error:
        raise MissingError("build folder cannot be locked", where=folder, found=error.strerror) from error
    with os.fdopen(descriptor):
        _lock(descriptor, folder, on_wait)
        settle(folder, ARTIFACTS)
        with _noticing_deletion(folder), finishing(folder):
            yield


@contextlib.contextmanager
def _noticing_deletion(folder: Path) -> Iterator[None]:
    """Raise MissingError in the place of what follows from the deletion of the folder."""
    try:
        yield
    except (OSError, InputError) as error:
        if (folder / _LOCK).exists():
            raise
        raise deleted_error(folder) from error


def _lock(descriptor: int, folder: Path, on_wait: Callable[[str], None]) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait(f"another build is running in {folder}: waiting until it ends")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise MissingError(
            "output folder cannot be locked", where=folder, found=error.strerror, next_command="choose an --out on a local disk"
        ) from error
