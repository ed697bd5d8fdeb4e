"""A stand-in for TensorRT in which everything is as one release declares it, and nothing else is there.

A name that a class of the release does not have raises AttributeError, so that the code's own feature tests go the way they
go with that release. A call is checked against the declared overloads, and answers with the declared type: what a script
says, or else an empty value of that type. A script that gives what the release does not declare is refused as well.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from trt_spec import Class, Member, Release, Signature
from trt_types import accepts, bind, describe, empty

Script = Mapping[tuple[str, str], Any]
_SPECIAL = ("__len__", "__getitem__", "__setitem__", "__delitem__", "__iter__", "__contains__")
_DIMS = {
    ("Dims", "__len__"): lambda dims: len(dims.__dict__["_values"]["items"]),
    ("Dims", "__getitem__"): lambda dims, index: dims.__dict__["_values"]["items"][index],
}
_PURE = {"ILogger": ("log",), "IProgressMonitor": ("phase_start", "step_complete", "phase_finish")}


class Library:
    """One release, and what was asked of it.

    Attributes:
        release: what it has.
        script: (class or "module", name) -> value, or a function of the object and the arguments that gives the value.
        touched: (class or "module", name) of every attribute that was read or written.
        missed: the same of every attribute that was asked for and is not there.
        calls: (class or "module", name, positional and keyword arguments in the order of the signature).
        module: what stands for the module.
    """

    def __init__(self, release: Release, script: Script) -> None:
        self.release = release
        self.script = {**_DIMS, **script}
        self.touched: set[tuple[str, str]] = set()
        self.missed: set[tuple[str, str]] = set()
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.classes: dict[str, Any] = {}
        self.members: dict[tuple[str, str], Any] = {}
        for name in release.classes:
            self._make(name)
        self._check_script()
        self.module = _Module(self)

    def new(self, name: str, /, **values: Any) -> Any:
        """An object of a class, as the library makes them; `values` are properties, or the `data` of an IHostMemory."""
        made = self.classes[name].__new__(self.classes[name])
        made.__dict__["_values"] = values
        return made

    def note(self, owner: str, name: str, *, there: bool) -> None:
        (self.touched if there else self.missed).add((owner, name))

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of a method, in order."""
        return [arguments for _, method, arguments in self.calls if method == name]

    def call(self, owner: str, name: str, signatures: tuple[Signature, ...], target: Any, given: tuple[Any, Any]) -> Any:
        """Check a call against its overloads and answer it."""
        bound = [(s, b) for s in signatures if (b := bind(self, s, *given)) is not None]
        if not bound:
            shown = "; ".join(describe(s) for s in signatures)
            raise TypeError(f"{owner}.{name}(): incompatible arguments {given[0]} {given[1]}, supported: {shown}")
        signature, arguments = bound[0]
        self.calls.append((owner, name, arguments))
        return self.answer(owner, name, signature.returns, target, arguments)

    def answer(self, owner: str, name: str, kind: str, target: Any, arguments: tuple[Any, ...] = ()) -> Any:
        """What a script says, converted as pybind11 would (a tuple of numbers is a Dims), else an empty value of the type."""
        said = self.script.get((owner, name), _Nothing)
        if said is _Nothing:
            return empty(self, kind)
        value = said(target, *arguments) if inspect.isfunction(said) else said
        if not accepts(self, kind, value):
            raise AssertionError(f"the script gives {value!r} for {owner}.{name}, which is a {kind}")
        return self._converted(kind, value)

    def _converted(self, kind: str, value: Any) -> Any:
        if kind == "Dims" and isinstance(value, tuple):
            return self.new("Dims", items=value)
        return [self._converted("Dims", item) for item in value] if kind == "list[Dims]" else value

    def _make(self, name: str) -> Any:
        if name not in self.classes:
            spec = self.release.classes[name]
            bases = tuple(self._make(base) for base in spec.bases) or (_Object,)
            namespace = {n: _attribute(self, name, n, m) for n, m in spec.members.items() if _is_ordinary(n)}
            made = _Type(name.rpartition(".")[2], bases, {**namespace, "_library": self, "_spec": spec})
            self.classes[name] = made
            if spec.enum is not None:
                type.__setattr__(made, "__members__", {})
            for member, (number, text) in (spec.enum or {}).items():
                value = self.new(name, name=member, value=number)
                value.__dict__["_text"] = text
                self.members[name, member] = vars(made)["__members__"][member] = value
                type.__setattr__(made, member, value)
        return self.classes[name]

    def _check_script(self) -> None:
        """A script serves several releases; of a class that this one has, it may not set what does not exist."""
        for owner, name in self.script:
            if owner in self.release.classes and self.release.member(owner, name) is None:
                raise AssertionError(f"the script sets {owner}.{name}, which {self.release.version} does not have")


class _Nothing:
    """No answer in the script."""


class _Module:
    def __init__(self, library: Library) -> None:
        self.__dict__["_library"] = library

    def __getattr__(self, name: str) -> Any:
        library: Library = self.__dict__["_library"]
        release = library.release
        there = name in release.classes or name in release.functions or name in release.values or name == "__version__"
        library.note("module", name, there=there)
        if name in release.classes:
            return library.classes[name]
        if name in release.functions:
            return lambda *args, **kwargs: library.call("module", name, release.functions[name], None, (args, kwargs))
        if name in release.values:
            return library.members[release.values[name]]
        if name == "__version__":
            return release.version
        raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError(f"tensorrt.{name} is written")


class _Type(type):
    """Classes that note what is read of them, and that like pybind11's refuse objects whose base was not initialized."""

    _library: Library
    _spec: Class

    def __getattribute__(cls, name: str) -> Any:
        if not name.startswith("_"):
            spec: Class = type.__getattribute__(cls, "_spec")
            member = cls._library.release.member(spec.name, name)
            known = member is not None or name in (spec.enum or {})
            if known or not _is_python_made(cls, name):
                cls._library.note(spec.name, name, there=known)
        return type.__getattribute__(cls, name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        spec, library = cls._spec, cls._library
        if spec.enum is not None:
            return _enumerator(library, spec, args, kwargs)
        made = super().__call__(*args, **kwargs)
        if "_values" not in made.__dict__:
            raise TypeError(f"{spec.name}.__init__() must be called when overriding __init__")
        if cls is not library.classes[spec.name]:
            _check_overrides(cls, spec)
        return made


def _enumerator(library: Library, spec: Class, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A member by its value; like pybind11, one without a name for a value that has none."""
    library.call(spec.name, "__init__", spec.members["__init__"].signatures, None, (args, kwargs))
    number = int([*args, *kwargs.values()][0])
    named = (library.members[spec.name, name] for name, (value, _) in (spec.enum or {}).items() if value == number)
    return next(named, None) or library.new(spec.name, name="???", value=number)


def _is_python_made(cls: type, name: str) -> bool:
    """Whether a class written in Python, below the library's own, defines it."""
    return any(name in vars(c) for c in cls.__mro__ if "_spec" not in vars(c) and c not in (_Object, object))


def _check_overrides(cls: Any, spec: Class) -> None:
    """The library calls what a subclass overrides by position: it must take that many arguments, and nothing may lack."""
    for name, member in spec.members.items():
        if member.kind != "method" or name.startswith("_"):
            continue
        override = inspect.getattr_static(cls, name)
        if isinstance(override, _Method):
            if name in _PURE.get(spec.name, ()):
                raise TypeError(f"{cls.__name__} does not override the pure virtual {spec.name}.{name}")
            continue
        for signature in member.signatures:
            inspect.signature(override).bind(None, *signature.arguments)


class _Object(metaclass=_Type):
    """An object of some class of the release."""

    _library: Library
    _spec: Class

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        init = self._library.release.member(self._spec.name, "__init__")
        if init is None or init.kind != "method":
            raise TypeError(f"{self._spec.name}: No constructor defined!")
        self._library.call(self._spec.name, "__init__", init.signatures, self, (args, kwargs))
        names = (argument.name for argument in init.signatures[0].arguments)
        self.__dict__["_values"] = {**dict(zip(names, args, strict=False)), **kwargs}  # Builder(logger).logger is the logger
        if self._spec.name == "Dims":
            self.__dict__["_values"]["items"] = tuple(args[0]) if args else ()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            member = self._library.release.member(self._spec.name, name)
            if member is not None or not (_is_python_made(type(self), name) or name in self.__dict__):
                self._library.note(self._spec.name, name, there=member is not None or name in (self._spec.enum or {}))
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        member = self._library.release.member(self._spec.name, name)
        is_subclass = type(self) is not self._library.classes[self._spec.name]
        if member is None and is_subclass:  # its objects have a __dict__, those of the bindings have none
            self.__dict__[name] = value
            return
        self._library.note(self._spec.name, name, there=member is not None)
        if member is None:
            raise AttributeError(f"{self._spec.name!r} object has no attribute {name!r}")
        if not member.writable:
            raise AttributeError(f"{self._spec.name}.{name} cannot be set")
        if not accepts(self._library, member.type, value):
            raise TypeError(f"{self._spec.name}.{name} is a {member.type}, not {value!r}")
        self.__dict__["_values"][name] = value

    def __int__(self) -> int:
        if self._spec.enum is None:
            raise TypeError(f"int() argument must not be {self._spec.name!r}")
        return int(self.__dict__["_values"]["value"])

    def __str__(self) -> str:
        return str(self.__dict__.get("_text") or f"<{self._spec.name} of {self._library.release.version}>")

    __repr__ = __str__

    def __bytes__(self) -> bytes:
        if self._spec.name != "IHostMemory":  # the one class with a buffer, which no dump shows
            raise TypeError(f"cannot convert {self._spec.name!r} object to bytes")
        return bytes(self.__dict__["_values"].get("data", b"plan"))

    def __enter__(self) -> Any:
        warnings.warn("Context managers for TensorRT types are deprecated.", DeprecationWarning, stacklevel=2)
        return self

    def __exit__(self, *_exception: object) -> None:
        pass


class _Method:
    """A descriptor: `object.method` checks its arguments, `Class.method(object, ...)` likewise."""

    def __init__(self, library: Library, owner: str, name: str, member: Member) -> None:
        self._where, self._library, self._member = (owner, name), library, member

    def __get__(self, target: Any, _owner: Any = None) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            bound, rest = (target, args) if target is not None or self._member.kind == "static" else (args[0], args[1:])
            return self._library.call(*self._where, self._member.signatures, bound, (rest, kwargs))

        return call


def _is_ordinary(name: str) -> bool:
    return not name.startswith("__") or name in _SPECIAL


def _attribute(library: Library, owner: str, name: str, member: Member) -> Any:
    if member.kind in ("method", "static"):
        return _Method(library, owner, name, member)
    if member.kind == "property":
        return property(lambda self: _read(library, self, owner, name, member))
    if member.kind == "class":
        return _Shared(library.classes, member.type)
    return _Shared(library.members, (member.type, name))  # a constant; a member of an enumeration is set with its class


def _read(library: Library, target: Any, owner: str, name: str, member: Member) -> Any:
    """What a script says, even if the code wrote something else; else what was written; else an empty value, kept."""
    values = target.__dict__["_values"]
    if name in values and (owner, name) not in library.script:
        return values[name]
    value = library.answer(owner, name, member.type, target)
    return values.setdefault(name, value) if (owner, name) not in library.script else value


class _Shared:
    """A descriptor: a class within a class, or a constant; looked up when read, since it may be made later."""

    def __init__(self, table: Mapping[Any, Any], key: Any) -> None:
        self._table, self._key = table, key

    def __get__(self, _target: Any, _owner: Any = None) -> Any:
        return self._table.get(self._key)
