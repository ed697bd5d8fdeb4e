"""The mark of a build folder that is under construction: every reader refuses it. Standard library only.

    .building   exists from the first change of a build until all of its steps are recorded; it stays when the build is
                killed, interrupted or refused half-way

Readers look at the mark and do not take the lock of the build: no build waits for a reader, and a build that was killed holds
no lock any more.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from calib.errors import ArtifactError, EvidenceError, MissingError
from engines.build_folder.safe_files import is_there

MARK = ".building"


def mark_under_construction(folder: Path) -> None:
    """Mark a folder, before anything in it is removed or written. Raises MissingError when it cannot be written."""
    try:
        (folder / MARK).touch()
    except OSError as error:
        raise MissingError(
            "folder cannot be written",
            where=folder,
            found=error.strerror,
            next_command="free space and allow writing there, then run the same command again",
        ) from error


@contextlib.contextmanager
def finishing(folder: Path) -> Iterator[None]:
    """Remove the mark when the block succeeds, or ends for lack of evidence: nothing more of the build is then to be done."""
    try:
        yield
    except EvidenceError:
        _remove(folder / MARK)
        raise
    _remove(folder / MARK)


def _remove(mark: Path) -> None:
    if is_there(mark):  # a folder that cannot be written has no mark to remove
        mark.unlink(missing_ok=True)


def check_finished(folder: Path) -> None:
    """Raise ArtifactError for a folder under construction."""
    if is_there(folder / MARK):
        raise ArtifactError(
            "the build folder is under construction: a build is running in it, or ended before its last step",
            where=folder,
            found=MARK,
            allowed="the folder of a finished build",
            next_command="wait until that build ends; if none is running, repeat its command (ufovit build, drift or report)",
        )
