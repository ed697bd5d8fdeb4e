"""Output options, checked before the work starts: no result is lost to a bad path, and no input to a result."""

import os
from collections.abc import Iterable
from pathlib import Path

from calib.errors import UsageError
from calib.files import check_output
from engines.build_folder.file_names import ARTIFACTS, RECORD


def check_outputs(*outputs: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Check the paths that a command will write; None is an option that was not given.

    `inputs` are the files and build folders that it reads. Raises UsageError for a folder, a socket, a disk, for one of the
    inputs or a file of their build, and for a path named twice; MissingError for a folder that cannot be written.
    """
    taken = set()
    for path in inputs:
        if path is not None:
            taken |= {os.path.realpath(file) for file in (path, *(path / name for name in (*ARTIFACTS, RECORD)))}
    for path in outputs:
        if path is None:
            continue
        check_output(path)
        if not path.is_file() and path.exists():  # a device or a pipe is not replaced
            continue
        if os.path.realpath(path) in taken:
            raise UsageError(
                "the output would replace an input or another output", where=path, allowed="a file of its own for each"
            )
        taken.add(os.path.realpath(path))
