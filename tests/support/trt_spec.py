"""What one release of TensorRT's Python API looks like: classes, members, signatures, read from a dump of its bindings.

pybind11 writes signatures into docstrings, `name(self: T, a: int, b: Optional[str] = None) -> R`, one per overload.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["method", "static", "property", "value", "class"]
ANYTHING = "object"
_OPEN, _CLOSE = "([{<", ")]}>"
_CPP_NAME = re.compile(r"\b(?:\w+::)+(\w+)")
_MODULE_PREFIX = re.compile(r"\btensorrt\w*(\.tensorrt\w*)*\.")
_UNNAMED = re.compile(r"arg\d+$")


@dataclass(frozen=True)
class Argument:
    """One parameter; a name that pybind11 made up (`arg0`), or that Python reserves (`in`), cannot be used as a keyword."""

    name: str
    type: str
    optional: bool
    positional_only: bool


@dataclass(frozen=True)
class Signature:
    """One overload, without `self`; `returns` is a type as the bindings write it, their module's name left out."""

    arguments: tuple[Argument, ...]
    returns: str


@dataclass(frozen=True)
class Member:
    """An attribute of a class. `type` is that of a property, "" where it cannot be read, or of a value."""

    kind: Kind
    type: str = ANYTHING
    signatures: tuple[Signature, ...] = ()
    writable: bool = False


@dataclass(frozen=True)
class Class:
    """A class with its own members; `enum` maps member names to (value, text) and is None for any other class."""

    name: str
    bases: tuple[str, ...]
    members: dict[str, Member]
    enum: dict[str, tuple[int, str]] | None


@dataclass(frozen=True)
class Release:
    """One release: qualified class name -> class, function name -> overloads, constant -> (enumeration, member)."""

    version: str
    classes: dict[str, Class]
    functions: dict[str, tuple[Signature, ...]]
    values: dict[str, tuple[str, str]]

    def lineage(self, name: str) -> Iterator[Class]:
        """A class and the classes that it inherits from, nearest first; nothing for a class that the release does not have."""
        cls = self.classes.get(name)
        if cls is not None:
            yield cls
            for base in cls.bases:
                yield from self.lineage(base)

    def member(self, name: str, attribute: str) -> Member | None:
        """A member of a class, its own or inherited."""
        return next((c.members[attribute] for c in self.lineage(name) if attribute in c.members), None)

    def names(self) -> set[str]:
        """Every name that stands anywhere in this release: of the module and of its classes."""
        names = {part for name in self.classes for part in name.split(".")} | {*self.functions, *self.values, "__version__"}
        for cls in self.classes.values():
            names |= {*cls.members, *(cls.enum or {})}
        return names

    def resolve(self, name: str) -> str | None:
        """The class that a type's name stands for; in signatures C++ names may stand for classes not yet bound."""
        for candidate in (name, name.removeprefix("I")):  # nvonnxparser::IParserError is bound as ParserError
            if candidate in self.classes:
                return candidate
        return None


def read_release(dump: dict[str, Any]) -> Release:
    """The release of a dump that trt_dump.py printed."""
    classes = {name: _class(name, entry) for name, entry in dump["classes"].items()}
    functions = {name: _signatures(name, entry, static=True) for name, entry in dump["functions"].items()}
    values = {name: (owner, member) for name, (owner, member) in dump["values"].items()}
    return Release(dump["version"], classes, functions, values)


def _class(name: str, entry: dict[str, Any]) -> Class:
    members = {attribute: _member(attribute, raw) for attribute, raw in entry["members"].items()}
    enum = entry.get("enum")
    return Class(name, tuple(entry["bases"]), members, None if enum is None else {n: (v, t) for n, (v, t) in enum.items()})


def _member(name: str, raw: dict[str, Any]) -> Member:
    kind = raw["kind"]
    if kind == "property":
        return _property(raw["get"], raw["set"])
    if kind in ("method", "static"):
        return Member(kind, signatures=_signatures(name, raw, static=kind == "static"))
    return Member(kind, type=raw["class"] or raw["type"])


def _property(getter: str | None, setter: str | None) -> Member:
    """The type is what the getter returns, else the second parameter of the setter."""
    if getter:
        return Member("property", parse_signature(getter.splitlines()[0]).returns, writable=setter is not None)
    arguments = parse_signature(setter.splitlines()[0]).arguments if setter else ()
    return Member("property", arguments[0].type if arguments else ANYTHING, writable=setter is not None)


def _signatures(name: str, raw: dict[str, Any], *, static: bool) -> tuple[Signature, ...]:
    if "parameters" in raw:
        parameters = raw["parameters"] if static else raw["parameters"][1:]
        return (Signature(tuple(Argument(n, ANYTHING, optional, False) for n, optional in parameters), ANYTHING),)
    start = re.compile(rf"(?:\d+\. )?{re.escape(name)}\((?!\*args, \*\*kwargs\)$)")
    return tuple(parse_signature(line) for line in raw["doc"].splitlines() if start.match(line))


def parse_signature(line: str) -> Signature:
    """One line of a docstring. A first parameter of the name `self`, or of an accessor's `arg0`, is left out."""
    start = line.index("(")
    end = _matching(line, start)
    texts = _split(line[start + 1 : end])
    slash = texts.index("/") if "/" in texts else -1
    arguments = [_argument(text, before_slash=i < slash) for i, text in enumerate(texts) if i != slash]
    is_accessor = start == 0
    if arguments and (arguments[0].name == "self" or is_accessor):
        arguments = arguments[1:]
    returns = line[end + 1 :].removeprefix(" -> ").strip()
    return Signature(tuple(arguments), plain_type(returns))


def _argument(text: str, *, before_slash: bool) -> Argument:
    declared, has_default, _ = _cut(text, "=")
    name, _, kind = _cut(declared, ":")
    is_positional = before_slash or _UNNAMED.match(name) is not None or keyword.iskeyword(name)
    return Argument(name, plain_type(kind.strip()) or ANYTHING, bool(has_default), is_positional)


def _cut(text: str, mark: str) -> tuple[str, str, str]:
    """`str.partition` at the first mark outside brackets that is not part of `::` or `==`."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in _OPEN) - (char in _CLOSE and text[i - 1] != "-")
        if char == mark and depth == 0 and mark not in (text[i + 1 : i + 2], text[i - 1 : i]):
            return text[:i], mark, text[i + 1 :]
    return text, "", ""


def _split(text: str) -> list[str]:
    """At commas outside brackets."""
    parts = []
    while text:
        part, _, text = _cut(text, ",")
        parts.append(part.strip())
    return parts


def _matching(text: str, start: int) -> int:
    depth = 0
    for i, char in enumerate(text[start:], start):
        depth += (char in _OPEN) - (char in _CLOSE and text[i - 1] != "-")
        if depth == 0:
            return i
    raise ValueError(text)


def plain_type(text: str) -> str:
    """A type without the names of modules and C++ namespaces: `List[tensorrt.tensorrt.Dims]` -> `list[Dims]`."""
    text = _CPP_NAME.sub(r"\1", _MODULE_PREFIX.sub("", text))
    text = re.sub(r"\b(typing_extensions|typing|collections\.abc|numpy)\.", "", text)
    return re.sub(r"\b(List|Tuple|Dict)\[", lambda match: match.group(0).lower(), text)


def type_parts(text: str) -> tuple[str, list[str]]:
    """`tuple[list[str], int]` -> ("tuple", ["list[str]", "int"])."""
    name, bracket, rest = text.partition("[")
    return name, _split(rest[:-1]) if bracket else []
