"""Arrays by name out of a `.npz`, never as pickles. numpy alone: a device reads its answers and golden pair so."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import ArtifactError

Arrays = dict[str, npt.NDArray[Any]]


def parse_npz(data: bytes, names: tuple[str, ...], path: Path, *, refusal: str, remake: str, optional: str = "") -> Arrays:
    """The arrays `names` of an archive, and `optional` if it is there.

    Raises ArtifactError for bytes that are not an archive of such arrays: message `refusal`, about `path`, with the command
    `remake` that writes such a file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in (*names, *([optional] if optional in stored.files else []))}
    except (OSError, KeyError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(refusal, where=path, found=error, next_command=remake) from error
