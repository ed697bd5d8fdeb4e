"""The project's TensorRT code under mypy, with the API of a release in place of `Any`.

`engines.trt.api` calls everything of TensorRT `Any`: no release ships types, and the module is known only when it is loaded.
So mypy is shown a copy, in which the parameters, attributes and results that hold TensorRT objects have the types below, and
a stub of the release that is written from its dump. It sees every line, also those that no test runs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from trt_spec import Class, Member, Release, Signature, type_parts

TYPES = {
    "load": "type[Module]",
    "module": "type[Module]",
    "parse": "Module.INetworkDefinition",
    "network": "Module.INetworkDefinition",
    "make_config": "Module.IBuilderConfig",
    "config": "Module.IBuilderConfig",
    "define_network": "tuple[Module.INetworkDefinition, Module.IBuilderConfig]",
    "deserialize": "Module.ICudaEngine",
    "engine": "Module.ICudaEngine",
    "severity": "Module.ILogger.Severity",
    "_make_logger": "Module.ILogger",
    "_make_monitor": "Module.IProgressMonitor",
    "_make_context": "Module.IExecutionContext",
    "_context": "Module.IExecutionContext | Any",  # Any, because None ends its life
    "_checked": "T",
    "result": "T | None",
}
"""Parameter, variable or function -> what holds TensorRT objects there, instead of `Any`."""
UNTYPED = {
    "_member": "a member of whichever enumeration is asked for",
    "_rtx_config": "None with TensorRT, whose create_execution_context takes other arguments",
}
"""What stays `Any`, and why."""
STUB = "tensorrt_api"
ROOT_CLASS = "Module"
_SHOWN_SPECIAL = (
    "__init__",
    "__len__",
    "__getitem__",
    "__setitem__",
    "__iter__",
    "__int__",
    "__index__",
    "__enter__",
    "__exit__",
)
_AS_THEY_ARE = ("int", "float", "str", "bool", "bytes", "memoryview", "None")
_OTHER_NAMES = {
    "SupportsInt": "builtins.int",
    "SupportsFloat": "builtins.float",
    "tuple": "tuple[Any, ...]",
    "list": "list[Any]",
    "buffer": f"bytes | bytearray | memoryview | {ROOT_CLASS}.IHostMemory",
    "Buffer": f"bytes | bytearray | memoryview | {ROOT_CLASS}.IHostMemory",
}
_CODES = ("attr-defined", "union-attr", "call-arg", "arg-type", "call-overload", "assignment", "override", "operator", "index")
_ERROR = re.compile(r"(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*)  \[(?P<code>[a-z-]+)\]")


def stub(release: Release) -> str:
    """The text of a .pyi: one class `Module` with every class, function and constant of the release inside."""
    lines = [
        "import builtins",
        "from collections.abc import Iterable, Iterator, Sequence",
        "from typing import Any, TypeVar, overload",
    ]
    lines += ['T = TypeVar("T")', f"class {ROOT_CLASS}:", "    __version__: str"]
    lines += [f"    {name}: {ROOT_CLASS}.{owner}" for name, (owner, _) in release.values.items()]
    for name, signatures in release.functions.items():
        lines += _functions(release, name, Member("static", signatures=signatures), "    ")
    for cls in release.classes.values():
        if "." not in cls.name:
            lines += _class(release, cls, "    ")
    return "\n".join(lines) + "\n"


def _class(release: Release, cls: Class, indent: str) -> list[str]:
    bases = f"({', '.join(f'{ROOT_CLASS}.{base}' for base in cls.bases)})" if cls.bases else ""
    lines, inner = [f"{indent}class {cls.name.rpartition('.')[2]}{bases}:"], indent + "    "
    lines += [f"{inner}{member}: {ROOT_CLASS}.{cls.name}" for member in cls.enum or {}]
    for name, member in cls.members.items():
        if name.startswith("_") and name not in _SHOWN_SPECIAL:
            continue
        if member.kind in ("method", "static"):
            lines += _functions(release, name, member, inner)
        elif member.kind == "class" and member.type == f"{cls.name}.{name}":
            lines += _class(release, release.classes[member.type], inner)
        elif member.kind == "value" and member.type in release.classes and name not in (cls.enum or {}):
            lines.append(f"{inner}{name}: {ROOT_CLASS}.{member.type}")
        elif member.kind == "property":
            lines += [f"{inner}@property", f"{inner}def {name}(self) -> {python_type(release, member.type)}: ..."]
            if member.writable:
                value = python_type(release, member.type, given=True)
                lines += [f"{inner}@{name}.setter", f"{inner}def {name}(self, value: {value}) -> None: ..."]
    if cls.name == "IHostMemory":
        lines.append(f"{inner}def __bytes__(self) -> bytes: ...")  # the one class with a buffer, which no dump shows
    if "__getitem__" in cls.members and "__iter__" not in cls.members:  # Python iterates over it all the same
        lines.append(f"{inner}def __iter__(self) -> Iterator[{'builtins.int' if cls.name == 'Dims' else 'Any'}]: ...")
    return [*lines, f"{inner}_: None"]


def _functions(release: Release, name: str, member: Member, indent: str) -> list[str]:
    lines = []
    for signature in member.signatures:
        lines += [f"{indent}@overload"] * (len(member.signatures) > 1) + [f"{indent}@staticmethod"] * (member.kind == "static")
        lines.append(
            f"{indent}def {name}({_parameters(release, signature, member)}) -> {_result(release, name, signature)}: ..."
        )
    return lines


def _result(release: Release, name: str, signature: Signature) -> str:
    return "None" if name == "__init__" else python_type(release, signature.returns)


def _parameters(release: Release, signature: Signature, member: Member) -> str:
    shown = [] if member.kind == "static" else ["self"]
    for i, argument in enumerate(signature.arguments):
        name = f"__{argument.name}" if argument.positional_only else argument.name
        can_lack = all(a.optional for a in signature.arguments[i:])  # pybind11 allows an optional one before others
        default = " = ..." if can_lack else ""
        shown.append(f"{name}: {python_type(release, argument.type, given=True)}{default}")
    return ", ".join(shown)


def python_type(release: Release, kind: str, *, given: bool = False) -> str:
    """A type of the bindings as Python spells it; `given` for what the caller gives, which pybind11 converts."""
    name, parts = type_parts(kind)
    inner = [python_type(release, part, given=given) for part in parts]
    if parts and name in ("list", "Sequence", "Iterator", "Iterable", "tuple"):
        return f"{'Sequence' if given and name == 'list' else name}[{', '.join(inner)}]"
    if name in _AS_THEY_ARE:
        return name if name == "None" else f"builtins.{name}"  # the release has a constant `bool`
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    cls = release.resolve(name)
    if cls is None:
        return "Any"
    return f"{ROOT_CLASS}.{cls} | Sequence[int]" if given and cls == "Dims" else f"{ROOT_CLASS}.{cls}"


def typed_copy(source: str) -> str:
    """The source with the annotations of TYPES. Lines stay where they are.

    Base classes `module.X` become the class of the stub, since mypy takes no variable for a base.
    """
    tree = ast.parse(source)
    edits = [(annotation, TYPES[name]) for name, annotation in _vague(tree) if name in TYPES]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            edits += [(base.value, ROOT_CLASS) for base in node.bases if _is_of_module(base)]
    lines = source.splitlines(keepends=True)
    for node, text in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line[: node.col_offset] + text + line[node.end_col_offset :]
    imports = (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    first = next(node.lineno for node in imports if getattr(node, "module", None) != "__future__") - 1
    lines[first] = f"from typing import Any; from {STUB} import {ROOT_CLASS}, T; {lines[first]}"
    return "".join(lines)


def unknown(source: str) -> list[str]:
    """What is annotated with `Any` and is neither in TYPES nor in UNTYPED."""
    return [f"line {a.lineno}: {n}" for n, a in _vague(ast.parse(source)) if n not in TYPES and n not in UNTYPED]


def _vague(tree: ast.AST) -> list[tuple[str, ast.expr]]:
    """(name, annotation) of parameters, variables and results whose annotation mentions `Any`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign | ast.FunctionDef):
            annotation = node.returns if isinstance(node, ast.FunctionDef) else node.annotation
            if annotation is not None and any(getattr(part, "id", "") == "Any" for part in ast.walk(annotation)):
                found.append((_name_of(node), annotation))
    return found


def _is_of_module(base: ast.expr) -> bool:
    return isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "module"


def _name_of(node: ast.arg | ast.AnnAssign | ast.FunctionDef) -> str:
    if isinstance(node, ast.AnnAssign):
        return getattr(node.target, "attr", getattr(node.target, "id", ""))
    return node.arg if isinstance(node, ast.arg) else node.name


def mypy_errors(folder: Path, files: list[str], cache: Path) -> list[tuple[str, int, str]]:
    """(file, line, message) of what mypy finds not to exist (name, argument or value), in files of a folder.

    Raises RuntimeError when mypy cannot read something. Its findings about the stub itself do not count: overloads and
    overrides there are as the bindings have them.
    """
    options = ["--config-file=", "--python-version=3.10", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    options += [f"--cache-dir={cache}", "--no-error-summary"]
    environment = {**os.environ, "MYPYPATH": str(folder)}
    command = [sys.executable, "-m", "mypy", *options, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300, check=False)
    found = [m for m in map(_ERROR.match, done.stdout.splitlines()) if m is not None]
    if done.returncode not in (0, 1) or bool(found) != bool(done.returncode) or any(m["code"] == "syntax" for m in found):
        raise RuntimeError(done.stdout + done.stderr)
    return [(m["file"], int(m["line"]), m["text"]) for m in found if m["file"] != f"{STUB}.pyi" and m["code"] in _CODES]
