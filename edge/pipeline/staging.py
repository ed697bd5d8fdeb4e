"""What a step writes, until all of it is complete: a folder in the build folder, exchanged with the old files in one go.

    .ufovit-staging/FILE          the files of the step
    .ufovit-staging/steps.json    written last: the record of the build folder as it will be after the exchange

A step that fails, is interrupted or killed before that record exists has changed nothing. From then on the exchange goes on to
its end, after a kill in the next command that writes into the folder: the files of later steps are removed, the last in the
flow first, so that no moment shows a verdict about an engine that is being replaced; the new files are renamed into place,
and the record last. In between a reader refuses the folder, because its files are not those of the old record.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from calib.errors import InputError, MissingError
from engines.build_folder.file_names import RECORD
from engines.build_folder.safe_files import is_there
from engines.build_folder.step_record import read_record

STAGING = ".ufovit-staging"


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder for the files of a step and the next record, removed when the block raises.

    Raises MissingError when the folder cannot be written, or was deleted meanwhile, also where something has created it again.
    """
    staging = folder / STAGING
    try:
        staging.mkdir()
    except FileNotFoundError as error:
        raise deleted_error(folder) from error
    except OSError as error:
        what = "build folder cannot be written"
        raise MissingError(what, where=folder, found=error.strerror, next_command="make it writable, or free space") from error
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)  # open, so that no other folder gets its inode
    try:
        yield staging
        if not staging.is_dir() or not os.path.samestat(os.fstat(descriptor), staging.stat()):
            raise deleted_error(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty, unless it was deleted and created again
            folder.rmdir()
        raise
    finally:
        os.close(descriptor)


def settle(folder: Path, artifacts: tuple[str, ...]) -> None:
    """Exchange the staged files with the old ones if they are complete, else remove them. Can be repeated after a kill."""
    staging = folder / STAGING
    if not is_there(staging):
        return
    if staging.is_symlink() or not staging.is_dir():
        staging.unlink()
        return
    try:
        record = read_record(staging)
    except InputError:  # none: the step was killed
        shutil.rmtree(staging)
        return
    recorded = {file for entry in record.values() for file in entry.writes}
    for file in reversed(artifacts):
        if file not in recorded:
            (folder / file).unlink(missing_ok=True)
    for file in artifacts:
        if file in recorded and is_there(staging / file):
            (staging / file).replace(folder / file)
    (staging / RECORD).replace(folder / RECORD)
    shutil.rmtree(staging)


def deleted_error(folder: Path) -> MissingError:
    """The error for a build folder that was deleted while a command wrote into it."""
    return MissingError("the build folder was deleted during the run", where=folder, next_command="run the same command again")
