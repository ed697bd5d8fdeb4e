"""Read JSON artifacts: an object of RFC 8259, bounded in size, depth and digits, and nothing else."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, NoReturn

from calib.errors import ArtifactError
from calib.files import describe_foreign, read_regular

LARGEST_JSON_BYTES = 16 << 20


_DEEPEST_JSON = 64


_LONGEST_INTEGER = 20
"""Digits of 2**64: beyond it, a number is of no artifact, and has no float."""


def read_json(path: Path, *, remake: str | None = None) -> dict[str, Any]:
    """Read a JSON object; raises ArtifactError, naming `remake`, if the file is missing, unreadable or holds something else."""
    return parse_json(read_regular(path, largest=LARGEST_JSON_BYTES, remake=remake), path, remake=remake)


def parse_json(data: bytes | str, where: object, *, remake: str | None = None, strict: bool = True) -> dict[str, Any]:
    """Parse a JSON object of RFC 8259 in UTF-8; errors name `where`. Raises ArtifactError, naming `remake`.

    Refused too: more than LARGEST_JSON_BYTES, deep nesting, a name twice in one object, NaN, infinities, numbers that have no
    float, and lone surrogates. So every value can be converted, compared, written and printed. Without `strict`, for the
    output of a library, names may repeat and numbers be infinite.
    """
    try:
        text = _json_text(data)
        value = json.loads(text, parse_int=_integer, **(_STRICT if strict else {}))
        check_nesting(value)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        found = "too deeply nested" if isinstance(error, RecursionError) else error
        raise ArtifactError("not a JSON file", where=where, found=found, next_command=remake) from error
    if not isinstance(value, dict):
        raise ArtifactError("not a JSON object", where=where, found=type(value).__name__, next_command=remake)
    return value


def _json_text(data: bytes | str) -> str:
    if len(data) > LARGEST_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes, up to {LARGEST_JSON_BYTES} are allowed")
    if isinstance(data, str):
        return data
    damage = describe_damage(data)
    if damage is not None:
        raise ValueError(damage)
    return data.decode()


def describe_damage(data: bytes) -> str | None:
    """What the bytes are that should be JSON, where that is easily told; None otherwise."""
    foreign = describe_foreign(data)
    if foreign is None and b"\n<<<<<<< " in data and b"\n>>>>>>> " in data:  # no JSON text holds a line break in a string
        return "the markers of a merge conflict"
    return foreign


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:40]!r} twice in one object")
    return fields


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _LONGEST_INTEGER:
        raise ValueError(f"a number of {len(text)} characters")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]}, which is not a finite number")


_STRICT: dict[str, Any] = {"object_pairs_hook": _object, "parse_float": _real, "parse_constant": _no_number}


def check_nesting(value: Any, most: int = LARGEST_JSON_BYTES) -> None:
    """Raises RecursionError for deep nesting, ValueError for more than `most` values, one that is there twice counted twice."""
    level, depth, count = [value], 0, 1
    while level:
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list | tuple))
        level = list(itertools.islice(itertools.chain.from_iterable(inner), most + 1))
        depth, count = depth + 1, count + len(level)
        if count > most:
            raise ValueError(f"more than {most} values")
        if depth > _DEEPEST_JSON:
            raise RecursionError("too deeply nested")
