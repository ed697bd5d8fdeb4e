"""What stands behind the `?` of a source: size=1280x720&fps=30."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from calib.errors import InputError

LARGEST_SIDE = 16384
FASTEST = 1000.0
_WHERE = "--source"


def parse_parameters(query: str, known: tuple[str, ...]) -> dict[str, str]:
    """Names and values. Raises InputError for a name that is not known, said twice or without a value."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise InputError("parameters of the source are not understood", where=_WHERE, found=query, allowed="a=1&b=2") from error
    found = dict(pairs)
    unknown = [name for name in found if name not in known]
    if unknown or len(found) != len(pairs) or "" in found.values():
        shown = ", ".join(unknown) or query
        allowed = f"each at most once, with a value: {', '.join(known)}"
        raise InputError("parameters of the source are not understood", where=_WHERE, found=shown, allowed=allowed)
    return found


def size_of(parameters: Mapping[str, str], default: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """(width, height) of `size=WIDTHxHEIGHT`, pixels. Raises InputError."""
    text = parameters.get("size")
    if text is None:
        return default
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    width, height = (int(part) for part in match.groups()) if match else (0, 0)
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        allowed = f"size=WIDTHxHEIGHT such as 1280x720, sides of 1 to {LARGEST_SIDE}"
        raise InputError("size of the source is not understood", where=_WHERE, found=text, allowed=allowed)
    return width, height


def fps_of(parameters: Mapping[str, str], default: float | None = None) -> float | None:
    """Pictures per second of `fps=`. Raises InputError."""
    text = parameters.get("fps")
    if text is None:
        return default
    try:
        fps = float(text)
    except ValueError:
        fps = math.nan
    if not 0 < fps <= FASTEST:
        allowed = f"above 0, at most {FASTEST:g}"
        raise InputError("frame rate of the source is not understood", where=_WHERE, found=text, allowed=allowed)
    return fps


def count_of(parameters: Mapping[str, str], name: str, default: int = 0) -> int:
    """A whole number, 0 or more. Raises InputError."""
    text = parameters.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,9}", text):
        raise InputError(f"parameter {name} of the source is no whole number", where=_WHERE, found=text, allowed="0 or more")
    return int(text)
