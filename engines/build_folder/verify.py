"""Is every file of a build folder the one that the build made, and do they speak of each other? Stdlib only.

    steps.json      its seal                          `engines.build_folder.step_record`
    every file      its digest in steps.json, which records what each step wrote, and in manifest.json, the chain from the graph
                    to the engine
    JSON artifacts  what they say of other files      `engines.build_folder.references`
    the rest        a file of an artifact's name that nobody recorded is refused

This finds damage, mixtures of builds and careless edits. Whoever may write the whole folder can make it consistent again: that
is what `engines.build_folder.signature` is for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from calib.errors import InputError
from calib.files import sha256_bytes
from engines.build_folder.file_names import ARTIFACTS, MANIFEST, RECORD, SIGNATURE
from engines.build_folder.manifest import EngineManifest, no_manifest, parse_manifest, recorded_files
from engines.build_folder.references import check_reference, references
from engines.build_folder.safe_files import REMAKE, compare, inside, is_there, json_object, read_contained, sha256_contained
from engines.build_folder.step_record import parse_record


@dataclass(frozen=True)
class CheckedFile:
    """One file of a build folder.

    Attributes:
        file: its name.
        sha256: digest of what lies there, "" where nothing can be read.
        recorded_by: artifacts that state its digest; steps.json states its own.
        problem: why it is refused, None where it is what was recorded.
    """

    file: str
    sha256: str
    recorded_by: tuple[str, ...]
    problem: InputError | None = None

    @property
    def status(self) -> str:
        """One phrase."""
        return "ok" if self.problem is None else str(self.problem).splitlines()[0]


@dataclass(frozen=True)
class FolderCheck:
    """A build folder, file by file: steps.json, then the flow. `manifest` is None where it is refused."""

    folder: Path
    manifest: EngineManifest | None
    files: tuple[CheckedFile, ...]

    @property
    def problem(self) -> InputError | None:
        """The first of the files' problems."""
        return next((file.problem for file in self.files if file.problem is not None), None)


def verify_folder(folder: Path, *, complete: bool = True) -> FolderCheck:
    """Check a build folder and return what was checked. Raises InputError naming the first file that is not what it should be.

    Args:
        folder: the build folder.
        complete: whether every file that a step wrote must be there. If not, the engine and its manifest must, and what else
            is there is checked. (Graphs that the manifest names and no step of this folder wrote lie in the bundle that it was
            built from.)
    """
    checked = examine_folder(folder, complete=complete)
    if checked.problem is not None:
        raise checked.problem
    return checked


def examine_folder(folder: Path, *, complete: bool = True) -> FolderCheck:
    """The same with problems returned, not raised. Raises InputError only where there is no folder."""
    if not folder.is_dir():
        raise InputError("no build folder", where=folder, next_command=REMAKE)
    examined = _Examined(folder)
    if complete or is_there(folder / RECORD):
        examined.read_record()
    manifest = examined.read_manifest()
    needed = {MANIFEST, *([manifest.engine.file] if manifest else [])}
    if complete:
        needed |= {file for file, recorders in examined.recorded.items() if RECORD in recorders}
    examined.compare_digests(needed)
    if manifest is not None:
        examined.cross_check(manifest)
    if manifest is not None and RECORD not in examined.problems:  # else nobody knows what belongs here
        examined.find_strangers()
    return FolderCheck(folder, manifest, tuple(examined.files()))


class _Examined:
    """What is known so far.

    Attributes:
        recorded: file -> who recorded it -> digest.
        found: file -> digest of what lies there.
        texts: JSON artifact -> its bytes: what is parsed is what was hashed.
        problems: file -> the first thing that is wrong with it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recorded: dict[str, dict[str, str]] = {}
        self.found: dict[str, str] = {}
        self.texts: dict[str, bytes] = {}
        self.problems: dict[str, InputError] = {}

    @contextlib.contextmanager
    def blaming(self, file: str) -> Iterator[Path]:
        """What is raised in the block is this file's problem."""
        try:
            yield self.folder / file
        except InputError as error:
            self.problems.setdefault(file, error)

    def read_record(self) -> None:
        """Note what steps.json records."""
        self.recorded[RECORD] = {}
        with self.blaming(RECORD) as path:
            for step in parse_record(self.text(RECORD), path).values():
                for file, sha256 in step.writes.items():
                    self.note(file, RECORD, sha256)
            self.note(RECORD, RECORD, self.found[RECORD])

    def read_manifest(self) -> EngineManifest | None:
        """The manifest, and note what it records. None when it is not the one that was recorded: it vouches for nothing."""
        digests = self.recorded.setdefault(MANIFEST, {})
        manifest: EngineManifest | None = None
        with self.blaming(MANIFEST) as path:
            if not is_there(path):
                raise no_manifest(path)
            data = self.text(MANIFEST)
            for recorder, sha256 in digests.items():
                compare(path, self.found[MANIFEST], sha256, recorder)
            manifest = parse_manifest(data, path)
            for file, sha256 in recorded_files(manifest):
                self.note(file, MANIFEST, sha256)
        return None if MANIFEST in self.problems else manifest

    def note(self, file: str, recorder: str, sha256: str) -> None:
        inside(self.folder, file, recorder)
        if self.recorded.setdefault(file, {}).setdefault(recorder, sha256) != sha256:
            raise InputError(f"{recorder} records two digests of one file", where=self.folder / recorder, found=file)

    def text(self, file: str) -> bytes:
        if file not in self.texts:
            self.texts[file] = read_contained(self.folder / file)
            self.found[file] = sha256_bytes(self.texts[file])
        return self.texts[file]

    def compare_digests(self, needed: Set[str]) -> None:
        """Hold every file that is needed or there against the digests that were recorded."""
        for file, digests in self.recorded.items():
            if file in self.problems or not (file in needed or is_there(self.folder / file)):
                continue
            with self.blaming(file) as path:
                if file.endswith(".json"):
                    self.text(file)
                else:
                    self.found[file] = sha256_contained(path)
                for recorder, sha256 in digests.items():
                    compare(path, self.found[file], sha256, recorder)

    def cross_check(self, manifest: EngineManifest) -> None:
        for reference in references(manifest):
            if reference.file in self.texts and reference.file not in self.problems:
                with self.blaming(reference.file) as path:
                    check_reference(reference, json_object(self.texts[reference.file], path), path)

    def find_strangers(self) -> None:
        for file in ARTIFACTS:
            if file not in self.recorded and file != SIGNATURE and is_there(self.folder / file):
                self.recorded[file] = {}
                with self.blaming(file) as path:
                    raise InputError(
                        "nobody recorded this file",
                        where=path,
                        allowed=f"files that {RECORD} or {MANIFEST} records",
                        next_command=f"{REMAKE}, or move the file away",
                    )

    def files(self) -> Iterator[CheckedFile]:
        for file in dict.fromkeys((RECORD, *ARTIFACTS, *sorted(self.recorded))):
            if file in self.found or file in self.problems:
                recorders = tuple(sorted(self.recorded[file]))
                yield CheckedFile(file, self.found.get(file, ""), recorders, self.problems.get(file))
