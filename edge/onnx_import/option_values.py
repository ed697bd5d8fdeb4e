"""Values of the options that fix inputs: `--input-shape NAME=1x3x224x224`, `--constant-input NAME=FILE.npy|NUMBER`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.errors import DataError, UsageError
from calib.files import describe_foreign, read_regular
from edge.images.npz import read_header

_LARGEST_BYTES = 1 << 28
"""Of an array that is given for an input."""


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME=1x3x224x224` -> name and sizes. Raises UsageError."""
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.lower().split("x"))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise _option_error("--input-shape", text, "NAME=1x3x224x224, sizes from 1")
    return name, shape


def parse_constant_input(text: str) -> tuple[str, NDArray[Any]]:
    """`NAME=FILE.npy` or `NAME=NUMBER` -> name and value, a number as an array without axes.

    Raises UsageError for a text that is neither, DataError for a file that is missing or not a NumPy array of numbers.
    """
    name, _, value = text.partition("=")
    if not name or not value:
        raise _option_error("--constant-input", text, "NAME=FILE.npy or NAME=NUMBER")
    if value.endswith(".npy"):
        return name, _read_array(Path(value))
    try:
        return name, np.asarray(float(value) if set(value.lower()) & set(".en") else int(value))
    except (ValueError, OverflowError) as error:
        raise _option_error("--constant-input", text, "NAME=FILE.npy or NAME=NUMBER") from error


def _read_array(path: Path) -> NDArray[Any]:
    data = read_regular(path, DataError, largest=_LARGEST_BYTES)
    try:
        read_header(io.BytesIO(data), len(data))
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, OSError, TypeError, SyntaxError) as error:
        raise DataError("not a NumPy array of numbers", where=path, found=describe_foreign(data) or error) from error


def _option_error(option: str, text: str, allowed: str) -> UsageError:
    return UsageError(f"{option} is not understood", where=option, found=text[:200], allowed=allowed)
