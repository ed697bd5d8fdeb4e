"""Arrays by name out of a `.npz`, never as pickles. numpy alone: a device reads its answers and golden pair so."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]


def parse_npz(data: bytes, names: tuple[str, ...], path: Path, *, refusal: str, remake: str, optional: str = "") -> Arrays:
    """The arrays that bytes hold, by name.

    Args:
        data: of the file.
        names: that must be there.
        path: what errors name.
        refusal: what the file is not, where it cannot be read so.
        remake: the command that makes such a file.
        optional: one more name, which is left out where it is not there.

    Raises InputError for bytes that are no archive of such arrays.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in (*names, *([optional] if optional in stored.files else []))}
    except (OSError, KeyError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(refusal, where=path, found=error, next_command=remake) from error
