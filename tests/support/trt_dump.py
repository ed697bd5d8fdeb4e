"""Run as a program: `python trt_dump.py MODULE` prints, as JSON, what the TensorRT bindings MODULE report about themselves.

Nothing is interpreted here (see trt_spec.py): docstrings come as they are, since pybind11 writes each signature into them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import sys
from types import FunctionType, ModuleType
from typing import Any

_OWN_KINDS = {"instancemethod": "method", "staticmethod": "static", "builtin_function_or_method": "static"}


def dump(module: ModuleType) -> dict[str, Any]:
    """{"version", "classes": {qualified name: ...}, "functions": {name: ...}, "values": {name: [class, member]}}."""
    found: dict[str, Any] = {"version": module.__version__, "classes": {}, "functions": {}, "values": {}}
    for name in dir(module):
        value = getattr(module, name)
        if isinstance(value, type):
            _add_class(value, found["classes"])
        elif isinstance(value, FunctionType) or type(value).__name__ in _OWN_KINDS:
            found["functions"][name] = _function(value)
        elif isinstance(members := getattr(type(value), "__members__", None), dict):
            found["values"][name] = [type(value).__qualname__, next(n for n, m in members.items() if m == value)]
    return found


def _add_class(cls: type, classes: dict[str, Any]) -> None:
    if cls.__qualname__ in classes or "tensorrt" not in cls.__module__:
        return
    members = {}
    for name, value in vars(cls).items():
        if isinstance(value, type):
            _add_class(value, classes)
            members[name] = {"kind": "class", "class": value.__qualname__}
        elif "pybind11" in name or name in ("__doc__", "__module__", "__members__", "__entries"):
            continue
        else:
            with contextlib.suppress(AttributeError):  # a static property without a getter
                members[name] = _member(cls, name, value)
    entry: dict[str, Any] = {"bases": [b.__qualname__ for b in cls.__bases__ if "tensorrt" in b.__module__], "members": members}
    enumeration = getattr(cls, "__members__", None)
    if isinstance(enumeration, dict):
        entry["enum"] = {name: [int(member), str(member)] for name, member in enumeration.items()}
    classes[cls.__qualname__] = entry


def _member(cls: type, name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, property):
        return {"kind": "property", "get": _accessor(value.fget), "set": _accessor(value.fset)}
    if isinstance(value, FunctionType):
        return {"kind": "method", **_function(value)}
    kind = _OWN_KINDS.get(type(value).__name__)
    if kind is not None:
        return {"kind": kind, "doc": getattr(cls, name).__doc__ or ""}
    shown = getattr(cls, name)
    owner = type(shown).__qualname__ if isinstance(getattr(type(shown), "__members__", None), dict) else ""
    return {"kind": "value", "class": owner, "type": type(shown).__name__}


def _accessor(function: Any) -> str | None:
    return None if function is None else (function.__doc__ or "")


def _function(value: Any) -> dict[str, Any]:
    """A function written in Python tells its parameters itself, one of pybind11 in its docstring."""
    if not isinstance(value, FunctionType):
        return {"doc": value.__doc__ or ""}
    parameters = inspect.signature(value).parameters.values()
    return {"parameters": [[p.name, p.default is not inspect.Parameter.empty] for p in parameters]}


if __name__ == "__main__":
    json.dump(dump(importlib.import_module(sys.argv[1])), sys.stdout)
