"""Artifacts: frozen dataclasses that are written as canonical JSON and read back with every field checked.

Stdlib only, because a device that runs an engine reads manifests with numpy and TensorRT alone. A reader refuses an unknown
`schema_version`, a missing, unknown or ill-typed field, and names the command that makes a new file.
"""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from calib.errors import InputError
from calib.files import read_json, write_json

SCHEMA_VERSION = 1

T = TypeVar("T")


def write_artifact(path: Path, artifact: Any) -> None:
    """Write a dataclass instance with `schema_version`, atomically; NaN and infinities raise InputError."""
    try:
        write_json(path, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(artifact)})
    except ValueError as error:
        raise InputError("artifact holds a value that is no finite number", where=path, found=error) from error


def read_artifact(path: Path, cls: type[T], *, remake: str) -> T:
    """Read a dataclass of type `cls`; `remake` is the command that makes such a file anew. Raises InputError."""
    fields = read_json(path)
    version = fields.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise InputError(
            "unknown schema version", where=path, found=version, allowed=SCHEMA_VERSION, next_command=remake
        )
    try:
        return from_fields(cls, fields)
    except (TypeError, ValueError) as error:
        raise InputError("malformed artifact", where=path, found=error, next_command=remake) from error


def from_fields(cls: type[T], fields: Any, where: str = "") -> T:
    """Build dataclass `cls` from plain JSON values, recursively. Raises TypeError naming the field that does not fit."""
    if not isinstance(fields, dict):
        raise TypeError(f"{where or cls.__name__}: expected an object, found {type(fields).__name__}")
    declared = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass by contract
    unknown = sorted(fields.keys() - declared.keys())
    missing = sorted(
        name
        for name, f in declared.items()
        if name not in fields and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise TypeError(f"{where or cls.__name__}: missing fields {missing}, unknown fields {unknown}")
    hints = get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in fields.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_fields(hint, value, where)  # type: ignore[arg-type]  # a dataclass type, checked above
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise TypeError(f"{where}: found {value!r}, allowed {', '.join(map(repr, args))}")
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[1:] == (...,) else list(args)
        if len(kinds) != len(value):
            raise TypeError(f"{where}: expected {len(kinds)} items, found {len(value)}")
        return tuple(_convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], v, f"{where}[{key}]") for key, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError(f"{where}: expected {hint}, found {value!r}")
