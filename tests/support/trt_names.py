"""Names that the project's source asks TensorRT for, read without running it.

An attribute name counts as TensorRT's unless something else explains it: it is defined in the file, in a file of the project
that it imports, or in one that those import; or it is an attribute of a built-in type or of a library that the file imports.
A name that exists, but on another class, is mypy's to find (trt_typing.py).
"""

from __future__ import annotations

import ast
import builtins
import importlib
from types import ModuleType

from trt_bindings import ROOT

FILES = (
    "engines/trt/api.py",
    "engines/trt/network.py",
    "engines/trt/trt_backend.py",
    "engines/trt/rtx_backend.py",
    "edge/runtime/trt_runner.py",
    "edge/runtime/trt_io.py",
)
"""Where objects of TensorRT are used."""
_PACKAGES = ("calib", "engines", "edge")
_BUILTIN_TYPES = [t for t in vars(builtins).values() if isinstance(t, type)]
_DEPTH = 2


def source(file: str) -> str:
    """The text of a file of the project."""
    return (ROOT / file).read_text(encoding="utf-8")


def asked_of_tensorrt(source: str) -> dict[str, int]:
    """Attribute names that only TensorRT explains -> the first line of each."""
    tree = ast.parse(source)
    explained = _defined(tree) | _of_libraries(tree)
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in explained:
            found[node.attr] = min(node.lineno, found.get(node.attr, node.lineno))
    return found


def feature_tests(source: str) -> set[str]:
    """The names in `hasattr(object, "name")` and `getattr(object, "name", ...)`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("hasattr", "getattr"):
            found |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def importers(module: str) -> list[str]:
    """Files of the project, relative to the repository, that import a module anywhere in them."""
    paths = (path for package in _PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    files = (path.relative_to(ROOT).as_posix() for path in paths)
    return [file for file in files if module in _imported(ast.parse(source(file)))]


def _imported(tree: ast.AST) -> dict[str, set[str]]:
    """Module -> names taken from it; the empty set where the module itself is."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.setdefault(node.module, set()).update(alias.name for alias in node.names)
            if node.module in _PACKAGES:
                found.update(
                    {f"{node.module}.{alias.name}": set() for alias in node.names if _is_module(node.module, alias.name)}
                )
    return found


def _is_module(package: str, name: str) -> bool:
    return (ROOT / package / f"{name}.py").exists() or (ROOT / package / name).is_dir()


def _defined(tree: ast.AST) -> set[str]:
    """What a file defines: functions, classes, fields, and whatever it assigns to `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (part for whole in targets for part in ast.walk(whole)):
                if isinstance(target, ast.Name):
                    names.add(target.id)
                elif isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
                    names.add(target.attr)
    return names


def _of_libraries(tree: ast.AST, depth: int = _DEPTH) -> set[str]:
    names = {name for kind in _BUILTIN_TYPES for name in dir(kind)} if depth == _DEPTH else set()
    for module, taken in _imported(tree).items():
        if module.partition(".")[0] in _PACKAGES:
            inner = _project_file(module)
            names |= _defined(inner) | (_of_libraries(inner, depth - 1) if depth > 1 else set())
        elif depth == _DEPTH:
            library = importlib.import_module(module)
            names |= _attributes(library)
            for name in taken:
                names |= _attributes(getattr(library, name, None))
    return names


def _project_file(module: str) -> ast.AST:
    path = ROOT.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def _attributes(value: object) -> set[str]:
    """Of a module also the attributes of its classes: whatever its functions return is most likely one of them."""
    kinds = [kind for kind in vars(value).values() if isinstance(kind, type)] if isinstance(value, ModuleType) else []
    return {name for thing in (value, *kinds) for name in dir(thing)}
