"""Is every file of a build folder the one that the build made, and do they speak of each other? Standard library only.

Every file is compared with what `engines.build_folder.folder` knows of it, and a file of an artifact's name that nobody
recorded is refused. This finds damage, mixtures of builds and careless edits. Whoever may write the whole folder can make it
consistent again: that is what `engines.build_folder.signature` is for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from calib.errors import ArtifactError, InputError
from engines.build_folder.file_names import ARTIFACTS, MANIFEST, RECORD, SIGNATURE
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import recorded_files
from engines.build_folder.safe_files import REMAKE


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
    """A build folder, file by file: steps.json, then the flow."""

    folder: Path
    files: tuple[CheckedFile, ...]

    @property
    def problem(self) -> InputError | None:
        """The first of the files' problems."""
        return next((file.problem for file in self.files if file.problem is not None), None)


def verify_folder(build: BuildFolder, *, complete: bool = True, ignore: Collection[str] = ()) -> FolderCheck:
    """Check a build folder and return what was checked. Raises ArtifactError naming the first file that is refused.

    Args:
        build: the build folder.
        complete: whether every file that a step wrote must be there. If not, the engine and its manifest must, and what else
            is there is checked. (Graphs that the manifest names and no step of this folder wrote lie in the bundle that it was
            built from.)
        ignore: files that are about to be replaced; they are not looked at.
    """
    checked = examine_folder(build, complete=complete, ignore=ignore)
    if checked.problem is not None:
        raise checked.problem
    return checked


def examine_folder(build: BuildFolder, *, complete: bool = True, ignore: Collection[str] = ()) -> FolderCheck:
    """The same with problems returned, not raised."""
    needed, problems = {MANIFEST}, {}
    if not build.problems:
        needed.add(build.manifest.engine.file)
    if complete:
        needed |= {RECORD, *(file for file, recorders in build.recorded.items() if RECORD in recorders)}
    known = {RECORD, MANIFEST, *build.recorded} - {*ignore}
    for file in known:
        if file in needed or build.has(file):
            try:
                build.check(file)
            except InputError as error:
                problems[file] = error
    if not problems.keys() & {RECORD, MANIFEST}:  # else nobody knows what belongs here
        strangers = {*ARTIFACTS} - known - {SIGNATURE, *ignore}
        problems |= {file: _unrecorded_error(build.path / file) for file in strangers if build.has(file)}
    order = dict.fromkeys((RECORD, *ARTIFACTS, *sorted(build.recorded)))
    examined = [file for file in order if file in problems or (file in known and file in build.digests)]
    return FolderCheck(build.path, tuple(_checked(build, file, problems.get(file)) for file in examined))


def verify_recorded(build: BuildFolder, *, complete: bool = True) -> None:
    """Check the files that the manifest records, and no others. Raises ArtifactError naming the first that differs.

    The checkpoint may be missing; with `complete` false all but the engine may.
    """
    manifest = build.manifest
    for file, _ in recorded_files(manifest):
        is_checkpoint = manifest.checkpoint is not None and file == manifest.checkpoint.file
        if file == manifest.engine.file or build.has(file) or (complete and not is_checkpoint):
            build.check(file)


def _checked(build: BuildFolder, file: str, problem: InputError | None) -> CheckedFile:
    recorders = set(build.recorded.get(file, ())) | ({RECORD} if file == RECORD and problem is None else set())
    return CheckedFile(file, build.digests.get(file, ""), tuple(sorted(recorders)), problem)


def _unrecorded_error(path: Path) -> ArtifactError:
    return ArtifactError(
        "nobody recorded this file",
        where=path,
        allowed=f"files that {RECORD} or {MANIFEST} records",
        next_command=f"{REMAKE}, or move the file away",
    )
