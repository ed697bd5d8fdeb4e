"""Verify that every file of a build folder is the one that the build wrote. Standard library only.

Every file is compared with its digests in `engines.build_folder.folder`, and an unrecorded file with an artifact's name is
refused. This finds damage, mixtures of builds and accidental edits. An attacker who can write the whole folder can make it
consistent again: `engines.build_folder.signature` protects against that.
"""

from collections.abc import Collection
from dataclasses import dataclass

from calib.errors import ArtifactError, InputError
from engines.build_folder.file_names import ARTIFACTS, MANIFEST, RECORD, SIGNATURE
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import recorded_files
from engines.build_folder.safe_files import REMAKE


@dataclass(frozen=True)
class CheckedFile:
    """A file of a build folder: its actual digest, "" where nothing can be read, and why it is refused, None if it matches."""

    file: str
    sha256: str
    problem: InputError | None = None

    @property
    def status(self) -> str:
        """The word ok, or the first line of the problem."""
        return "ok" if self.problem is None else str(self.problem).splitlines()[0]


def verify_folder(build: BuildFolder, *, complete: bool = True, ignore: Collection[str] = ()) -> tuple[CheckedFile, ...]:
    """Check a build folder, file by file: steps.json, then the flow. Raises ArtifactError naming the first that is refused.

    Args:
        complete: whether every file that a step wrote must exist. If not, only the engine and its manifest must; other files
            are checked if present. (Graphs that the manifest names and no step of this folder wrote are in the bundle that it
            was built from.)
        ignore: files that are about to be replaced; they are not read.
    """
    checked = examine_folder(build, complete=complete, ignore=ignore)
    for file in checked:
        if file.problem is not None:
            raise file.problem
    return checked


def examine_folder(build: BuildFolder, *, complete: bool = True, ignore: Collection[str] = ()) -> tuple[CheckedFile, ...]:
    """The same, with problems returned rather than raised, except for a folder that a build has begun to change."""
    needed, problems = {MANIFEST}, dict[str, InputError]()
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
    if not problems.keys() & {RECORD, MANIFEST}:  # else it is unknown which files belong here
        for file in filter(build.has, {*ARTIFACTS} - known - {SIGNATURE, *ignore}):
            problems[file] = ArtifactError(
                "unexpected file: not listed in steps.json or manifest.json",
                where=build.path / file,
                allowed=f"files that {RECORD} or {MANIFEST} records",
                next_command=f"{REMAKE}, or move the file away",
            )
    build.check_finished()  # again: files that a build removed meanwhile look like files that were never there
    order = dict.fromkeys((RECORD, *ARTIFACTS, *sorted(build.recorded)))
    examined = [file for file in order if file in problems or (file in known and file in build.digests)]
    return tuple(CheckedFile(file, build.digests.get(file, ""), problems.get(file)) for file in examined)


def verify_recorded(build: BuildFolder, *, complete: bool = True) -> None:
    """Check the files that the manifest records, and no others. Raises ArtifactError naming the first that differs.

    The checkpoint may be missing; with `complete` false all but the engine may.
    """
    manifest = build.manifest
    for file, _ in recorded_files(manifest):
        is_checkpoint = manifest.checkpoint is not None and file == manifest.checkpoint.file
        if file == manifest.engine.file or build.has(file) or (complete and not is_checkpoint):
            build.check(file)
