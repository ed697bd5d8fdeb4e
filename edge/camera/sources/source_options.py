"""Options after the `?` of a source: size=1280x720&fps=30."""

import math
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from calib.errors import UsageError

MAX_SIDE = 16384
MAX_FPS = 1000.0


def parse_parameters(query: str, known: tuple[str, ...]) -> dict[str, str]:
    """Names and values. Raises UsageError for a name that is unknown, repeated or without a value."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise _option_error("invalid options of the source", query, "a=1&b=2") from error
    parameters = dict(pairs)
    unknown = [name for name in parameters if name not in known]
    if unknown or len(parameters) != len(pairs) or "" in parameters.values():
        allowed = f"each at most once, with a value: {', '.join(known)}"
        raise _option_error("invalid options of the source", ", ".join(unknown) or query, allowed)
    return parameters


def parse_size(parameters: Mapping[str, str]) -> tuple[int, int] | None:
    """(width, height) of `size=WIDTHxHEIGHT`, pixels; None if it is not given. Raises UsageError."""
    text = parameters.get("size")
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    width, height = (int(part) for part in match.groups()) if match else (0, 0)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise _option_error("invalid size of the source", text, f"size=WIDTHxHEIGHT such as 1280x720, sides of 1 to {MAX_SIDE}")
    return width, height


def parse_fps(parameters: Mapping[str, str]) -> float | None:
    """Frames per second of `fps=`; None if it is not given. Raises UsageError."""
    text = parameters.get("fps")
    if text is None:
        return None
    try:
        fps = float(text)
    except ValueError:
        fps = math.nan
    if not 0 < fps <= MAX_FPS:
        raise _option_error("invalid frame rate of the source", text, f"above 0, at most {MAX_FPS:g}")
    return fps


def parse_count(parameters: Mapping[str, str], name: str) -> int:
    """A whole number, 0 or more; 0 if it is not given. Raises UsageError."""
    text = parameters.get(name, "0")
    if not re.fullmatch(r"\d{1,9}", text):
        raise _option_error(f"option {name} of the source is not a whole number", text, "0 or more")
    return int(text)


def _option_error(what: str, found: str, allowed: str) -> UsageError:
    return UsageError(what, where="--source", found=found, allowed=allowed)
