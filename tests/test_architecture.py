"""The laws of the house, read from the source: imports run edge -> engines -> calib, one door to TensorRT, light imports."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("calib", "engines", "edge")
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py")
LIGHT = ("calib", "engines", "edge", "edge.runtime")
HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "cv2", "onnx", "onnxruntime")
TENSORRT = ("tensorrt", "tensorrt_rtx", "tensorrt_bindings", "tensorrt_libs", "tensorrt_dispatch", "tensorrt_lean")
MAX_LINES = 300
FORBIDDEN_NAMES = ("utils", "util", "helpers", "helper", "common", "misc")


def imported(source, module=""):
    """Every module that a source imports, wherever in it: statements, `import_module("x")`, `__import__("x")`.

    `module` is the source's own dotted name (of the package for an `__init__`), against which relative imports count.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def constants_of_dynamic_imports(source):
    """The dotted names in the dicts of a source that calls `import_module` with a name that it looks up."""
    tree = ast.parse(source)
    looked_up = any(
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
        and not isinstance(node.args[0], ast.Constant)
        for node in ast.walk(tree)
    )
    values = [v for node in ast.walk(tree) if isinstance(node, ast.Dict) for v in node.values]
    return {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)} if looked_up else set()


def all_imports(source, module=""):
    return imported(source, module) | constants_of_dynamic_imports(source)


def upward(source, package, module=""):
    """Imports that go against the line: from a package to one that stands above it."""
    above = ORDER[ORDER.index(package) + 1 :]
    return sorted(name for name in all_imports(source, module) if name.split(".")[0] in above)


def tensorrt_imports(source):
    return sorted(name for name in all_imports(source) if name.split(".")[0] in TENSORRT)


def loaded_by(module):
    """Heavy modules in a fresh interpreter after importing `module`."""
    code = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return run.stdout.split()


def isort_key(name):
    """Constants, then classes, then functions, each sorted: ruff's order of `__all__`."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def too_long(lines):
    return lines > MAX_LINES


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


def test_there_is_something_to_read():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ORDER)
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert upward(path.read_text(encoding="utf-8"), package, dotted(path)) == []


@pytest.mark.parametrize("path", [p for p in FILES if dotted(p) != "engines.trt.api"], ids=dotted)
def test_tensorrt_has_one_door(path):
    assert tensorrt_imports(path.read_text(encoding="utf-8")) == []


def test_the_door_is_one():
    assert tensorrt_imports((ROOT / "engines" / "trt" / "api.py").read_text(encoding="utf-8"))


def test_packages_do_not_import_each_other_in_a_circle():
    """Modules that are imported at module level form no cycle; imports inside functions and TYPE_CHECKING do not count."""
    graph = {}
    for path in FILES:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        top = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
        name = dotted(path).removesuffix(".__init__")
        graph[name] = imported(ast.unparse(ast.Module(top, [])), dotted(path))
    assert cycle({name: sorted(targets & graph.keys() - {name}) for name, targets in graph.items()}) is None


def cycle(graph):
    """A cycle of a graph {node: [nodes]} as a list, or None."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        path.append(node)
        found = next(filter(None, map(visit, graph.get(node, []))), None)
        path.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, graph)), None)


@pytest.mark.parametrize("module", LIGHT)
def test_light_packages_load_no_heavy_library(module):
    assert loaded_by(module) == []


def test_loading_is_noticed():
    assert "onnx" in loaded_by("calib.graph")


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_resolve_and_are_sorted(name):
    package = importlib.import_module(name)
    public = getattr(package, "__all__", [])
    assert list(public) == sorted(set(public), key=isort_key)
    for member in public:
        assert getattr(package, member) is not None
    lazy = getattr(package, "_PUBLIC", None)
    if lazy is not None:
        assert set(lazy) == set(public)
        with pytest.raises(AttributeError, match="no_such_name"):
            package.no_such_name  # noqa: B018  # the attribute access is what is tested


def test_public_names_are_stated():
    for name in ("calib", "engines"):
        assert importlib.import_module(name).__all__


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_files_are_small_and_named_by_a_concept(path):
    assert not too_long(len(path.read_text(encoding="utf-8").splitlines()))
    assert path.stem not in FORBIDDEN_NAMES
    assert not set(path.relative_to(ROOT).parts[:-1]) & set(FORBIDDEN_NAMES)


@pytest.mark.parametrize(
    ("package", "source", "module"),
    [
        ("calib", "import engines", ""),
        ("calib", "import engines.build as b", ""),
        ("calib", "from edge.model import config", ""),
        ("calib", "def f():\n    from engines.build_spec import BuildSpec", ""),
        ("calib", "if TYPE_CHECKING:\n    import edge", ""),
        ("calib", "from .. import edge", "x.calib.y"),
        ("engines", "try:\n    import edge.cli\nexcept ImportError:\n    pass", ""),
        ("engines", "import importlib\nimportlib.import_module('edge.model.export')", ""),
        ("engines", "from importlib import import_module\n_P = {'f': 'edge.model.export'}\nimport_module(_P['f'])", ""),
        ("engines", "__import__('edge')", ""),
    ],
)
def test_an_upward_import_is_found(package, source, module):
    found = upward(source, package, module)
    assert found or (module and "edge" in "".join(imported(source, module)))


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("edge", "import engines, calib"),
        ("engines", "from calib.files import write_bytes"),
        ("engines", "import edges"),
        ("calib", "from . import graph"),
        ("calib", "x = {'a': 'edge.model'}  # a text, never imported"),
        ("calib", "'''import edge'''"),
    ],
)
def test_a_downward_import_is_fine(package, source):
    assert upward(source, package, f"{package}.module") == []


@pytest.mark.parametrize(
    "source",
    [
        "import tensorrt",
        "import tensorrt as trt",
        "from tensorrt_rtx import Builder",
        "def f():\n    import tensorrt_rtx",
        "import importlib as i\ni.import_module('tensorrt.tensorrt')",
        "from importlib import import_module\n_M = {'rtx': 'tensorrt_rtx'}\nimport_module(_M['rtx'])",
    ],
)
def test_another_door_is_found(source):
    assert tensorrt_imports(source)


def test_a_mention_of_tensorrt_is_no_door():
    assert tensorrt_imports("versions('tensorrt_rtx')\nfrom engines.trt import api as trt_api\nx = {'a': 'tensorrt'}") == []


def test_the_checkers_see_what_they_should():
    assert cycle({"a": ["b"], "b": ["c"], "c": ["a"]}) == ["a", "b", "c", "a"]
    assert cycle({"a": ["b", "c"], "b": ["c"], "c": []}) is None
    assert sorted(["zeta", "Beta", "alpha", "GAMMA"], key=isort_key) == ["GAMMA", "Beta", "alpha", "zeta"]
    assert too_long(301)
    assert not too_long(300)
