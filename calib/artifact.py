"""Artifacts: frozen dataclasses written as canonical JSON and read back with every field checked.

Standard library only: a device that runs an engine reads manifests with numpy and TensorRT alone. A reader refuses an unknown
`schema_version` and a missing, unknown or ill-typed field, and names the command that makes a new file.

A class may define its own `schema_version` (default 1) and its own JSON layout: `to_json(self)` returns the object,
`from_json(cls, fields)` the instance; it raises TypeError or ValueError for fields that do not fit.
"""

import dataclasses
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from calib.errors import ArtifactError, InputError
from calib.files import write_json
from calib.json_reader import parse_json, read_json

SCHEMA_VERSION = 1
_LONGEST_SHOWN = 200
"""Characters of a wrong value that an error shows."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Artifact(Generic[T]):
    """A file of a build folder: its name and its parser, declared once, next to the type of its content.

    `parse` maps (bytes, path that errors name) to the content and raises ArtifactError, naming the command that writes it.
    """

    file: str
    parse: Callable[[bytes, Path], T]


def json_artifact(file: str, cls: type[T], *, remake: str) -> Artifact[T]:
    """A file that holds a dataclass of type `cls`; `remake` is the command that writes it."""
    return Artifact(file, partial(parse_artifact, cls=cls, remake=remake))


def write_artifact(path: Path, artifact: Any) -> None:
    """Write a dataclass instance with `schema_version`, atomically; NaN and infinities raise InputError."""
    try:
        fields = artifact.to_json() if hasattr(artifact, "to_json") else dataclasses.asdict(artifact)
        write_json(path, {"schema_version": getattr(type(artifact), "schema_version", SCHEMA_VERSION), **fields})
    except ValueError as error:
        raise InputError("artifact holds a value that is not a finite number", where=path, found=error) from error


def read_artifact(path: Path, cls: type[T], *, remake: str) -> T:
    """Read a dataclass of type `cls`; `remake` is the command that writes such a file. Raises ArtifactError."""
    return _from_json(read_json(path, remake=remake), path, cls, remake)


def parse_artifact(data: bytes, path: Path, cls: type[T], *, remake: str) -> T:
    """Like `read_artifact`, from the bytes of the file; errors name `path`."""
    return _from_json(parse_json(data, path, remake=remake), path, cls, remake)


def _from_json(fields: dict[str, Any], path: Path, cls: type[T], remake: str) -> T:
    version, allowed = fields.pop("schema_version", None), getattr(cls, "schema_version", SCHEMA_VERSION)
    if version != allowed:
        found = None if version is None else f"{version!s:.{_LONGEST_SHOWN}}"
        raise ArtifactError("unknown schema version", where=path, found=found, allowed=allowed, next_command=remake)
    try:
        return from_fields(cls, fields)
    except (TypeError, ValueError, InputError) as error:
        found = " ".join(str(error).split())  # a refusal of the class itself does not know the file
        raise ArtifactError("malformed artifact", where=path, found=found, next_command=remake) from error


def from_fields(cls: type[T], fields: Any, where: str = "") -> T:
    """Build dataclass `cls` from plain JSON values, recursively. Raises TypeError, naming the field that does not fit."""
    if not isinstance(fields, dict):
        raise TypeError(f"{where or cls.__name__}: expected an object, found {type(fields).__name__}")
    if not where and hasattr(cls, "from_json"):
        instance: T = getattr(cls, "from_json")(fields)  # noqa: B009  # the type checker knows no such attribute of T
        return instance
    declared = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass by contract
    unknown = sorted(fields.keys() - declared.keys())
    missing = sorted(
        name
        for name, f in declared.items()
        if name not in fields and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise TypeError(f"{where or cls.__name__}: missing fields {missing}, unknown fields {unknown!s:.{_LONGEST_SHOWN}}")
    hints = get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in fields.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        converted = value
    elif dataclasses.is_dataclass(hint):
        converted = from_fields(hint, value, where)  # type: ignore[arg-type]  # a dataclass type, checked above
    elif origin in (Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        converted = None if value is None else _convert(inner, value, where)
    elif origin in (tuple, dict):
        converted = _convert_items(origin, args, value, where)
    elif origin is Literal:
        converted = value if value in args else _mismatch(f"one of {args}", value, where)
    elif hint is float and type(value) is int:
        converted = float(value)
    else:  # exact types: isinstance takes a bool for an int
        converted = value if type(value) is hint else _mismatch(hint.__name__, value, where)
    return converted


def _convert_items(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    """tuple[T, ...] and tuple[T, U] from lists, dict[str, T] from objects."""
    if origin is dict:
        if not isinstance(value, dict):
            _mismatch("an object", value, where)
        return {key: _convert(args[1], v, f"{where}[{key}]") for key, v in value.items()}
    if not isinstance(value, list):
        _mismatch("a list", value, where)
    hints = [args[0]] * len(value) if args[1:] == (...,) else list(args)
    if len(hints) != len(value):
        _mismatch(f"{len(hints)} items", value, where)
    return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _mismatch(expected: str, value: Any, where: str) -> NoReturn:
    raise TypeError(f"{where[:_LONGEST_SHOWN]}: expected {expected}, found {value!r:.{_LONGEST_SHOWN}}")
