"""Types as pybind11 writes them: which Python values they take, what fits a signature, and an empty value of each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trt_spec import ANYTHING, Signature, type_parts

if TYPE_CHECKING:
    from trt_fake import Library


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) or hasattr(value, "__float__")


def _is_number(value: Any) -> bool:
    """Members of enumerations too, as of all that has `__index__`; no float."""
    return hasattr(value, "__index__") or getattr(getattr(type(value), "_spec", None), "enum", None) is not None


def _is_buffer(value: Any) -> bool:
    if getattr(getattr(type(value), "_spec", None), "name", "") == "IHostMemory":
        return True
    with contextlib.suppress(TypeError):
        memoryview(value)
        return True
    return False


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "int": _is_number,
    "SupportsInt": _is_number,
    "float": _is_real,
    "SupportsFloat": _is_real,
    "bool": lambda value: value is None or hasattr(value, "__bool__"),
    "str": lambda value: isinstance(value, str | bytes),
    "bytes": lambda value: isinstance(value, bytes),
    "buffer": _is_buffer,
    "Buffer": _is_buffer,
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
}
_SEQUENCES = ("list", "Sequence")
_REFERENCES = ("ILogger", "Dims")  # what no null pointer stands for
_EMPTY: dict[str, Any] = {"int": 0, "float": 0.0, "str": "", "bytes": b"", "bool": True, "tuple": ()}


def accepts(library: Library, kind: str, value: Any) -> bool:
    """Whether pybind11 takes a value for a parameter of this type. What is not known here (capsule, ndarray...) is taken."""
    name, parts = type_parts(kind)
    if parts and name in _SEQUENCES:
        return isinstance(value, list | tuple) and all(accepts(library, parts[0], item) for item in value)
    if parts and name == "tuple":
        fits = isinstance(value, tuple) and len(value) == len(parts)
        return fits and all(accepts(library, part, item) for part, item in zip(parts, value, strict=True))
    if name in _PLAIN:
        return _PLAIN[name](value)
    cls = library.release.resolve(name)
    return cls is None or _is_instance(library, cls, value)


def _is_instance(library: Library, cls: str, value: Any) -> bool:
    if isinstance(value, library.classes[cls]):
        return True
    if cls == "Dims":  # implicitly made from a sequence of numbers
        return isinstance(value, list | tuple) and all(hasattr(item, "__index__") for item in value)
    if cls == "FallbackString":
        return isinstance(value, str | bytes)
    is_pointer = cls not in _REFERENCES and library.release.classes[cls].enum is None
    return value is None and is_pointer


def empty(library: Library, kind: str) -> Any:
    """0, "", (), the first member of an enumeration, a new object of a class; True for a bool, since that is success.

    None for what is not known here.
    """
    name, parts = type_parts(kind)
    if name == "list":
        return []
    if name == "tuple" and parts:
        return tuple(empty(library, part) for part in parts)
    if name in _EMPTY:
        return _EMPTY[name]
    cls = library.release.resolve(name)
    if cls is None:
        return None
    members = library.release.classes[cls].enum
    if members is not None:
        return library.members[cls, next(iter(members))]
    return library.new(cls, **({"items": ()} if cls == "Dims" else {}))


def bind(library: Library, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """The given arguments in the order of the signature; None where they do not fit it."""
    names = [argument.name for argument in signature.arguments]
    if len(args) > len(names):
        return None
    given = dict(zip(names, args, strict=False))
    keywords = {argument.name for argument in signature.arguments if not argument.positional_only} - given.keys()
    if not kwargs.keys() <= keywords:
        return None
    given.update(kwargs)
    for argument in signature.arguments:
        if argument.name not in given:
            if not argument.optional:
                return None
        elif not accepts(library, argument.type, given[argument.name]):
            return None
    return tuple(given[name] for name in names if name in given)


def describe(signature: Signature) -> str:
    """For error messages."""
    shown = [f"{a.name}: {a.type}{' = ...' if a.optional else ''}" for a in signature.arguments]
    return f"({', '.join(shown)}) -> {signature.returns or ANYTHING}"
