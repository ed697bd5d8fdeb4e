"""The laws of the house, read from the source: imports run one way, heavy libraries have one door, faces, sizes, names.

Each law is a function from sources to the list of offenders; each has a negative control. A test reports all offenders at once.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import (
    PACKAGES,
    Source,
    circles,
    import_graph,
    imported_names,
    own_faces,
    read_sources,
    upward_packages,
    upward_rooms,
)

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "calib": (
        "printable", "errors", "package_face", "files", "json_reader", "artifact", "parallel", "metrics", "graph_checks",
        "graph", "graph_editor", "ort_session", "graph_segments", "graph_splice", "mac_formulas", "macs", "histogram", "scales",
        "calibrators", "placement_record", "calibration_table",
        "split_half",
        "qdq_placement", "collect", "qdq_writer", "lint", "held_out", "sensitivity", "budget", "attention_products",
        "placement", "refine", "quantize", "trt_calibration_cache",
    ),
    "engines": (
        "targets", "build_spec", "plan_kernels", "layer_records", "roofline", "backend_protocol", "hardware", "fp16",
        "typed_graph", "token_layouts", "rounded_nodes", "fp16_statistics", "fp16_emulation",
        "layer_requests", "precision_receipt", "rtx_plan_text", "engine_inspector", "trt", "torch_tensorrt", "ort",
        "openvino", "backends", "select_target", "build", "build_folder", "speed_estimate",
    ),
    "edge": (
        "progress", "numeric_tolerances", "option_bounds",
        "assets", "images", "model", "onnx_import", "stability", "tasks", "runtime", "drift",
        "attribution", "gate", "report", "inspect", "bench", "fleet", "serve", "camera", "pipeline", "cli",
    ),
}  # fmt: skip
"""Lowest first: a room imports rooms that stand before it."""
SOURCES = read_sources(ROOT)
GRAPH = import_graph(SOURCES)
FACES = sorted(name for name, source in SOURCES.items() if source.package and name != "edge")
"""Every package but `edge`, whose rooms are its faces."""
HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "cv2", "onnx", "onnxruntime", "openvino", "ray")
TENSORRT = ("tensorrt", "tensorrt_rtx", "tensorrt_bindings", "tensorrt_libs", "tensorrt_dispatch", "tensorrt_lean")
DOORS = {"TensorRT": (TENSORRT, "engines.trt.api"), "Ray": (("ray",), "edge.fleet")}
"""Library -> the names that it is imported by, and the module or package that alone may do so."""
MAX_LINES, MAX_TEST_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 300, 600, 60, 8
FORBIDDEN_NAMES = ("utils", "util", "helpers", "helper", "common", "misc")


def other_doors(sources, libraries, door):
    """Modules outside `door` that import one of the libraries."""
    return sorted(
        module
        for module, source in sources.items()
        if not (module == door or module.startswith(f"{door}."))
        and {name.split(".")[0] for name in imported_names(source, module)} & set(libraries)
    )


def without_place(sources, package, rooms):
    """Rooms of a package that the order does not know."""
    return sorted({name.split(".")[1] for name in sources if name.startswith(f"{package}.")} - set(rooms))


def loaded_by(*modules):
    """Heavy libraries in a fresh interpreter after importing `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return run.stdout.split()


def isort_key(name):
    """Constants, then classes, then functions, each sorted: ruff's order of `__all__`."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def wrong_in_face(package):
    """What is wrong with a package's public names, as texts."""
    name, public = package.__name__, getattr(package, "__all__", None)
    if public is None:
        return [f"{name}: no __all__"]
    wrong = [] if list(public) == sorted(set(public), key=isort_key) else [f"{name}: __all__ is not sorted, or names one twice"]
    wrong += [
        f"{name}.{member} is a module too: the name means one or the other, by what was imported before"
        for member in public
        if f"{name}.{member}" in SOURCES
    ]
    wrong += [f"{name}.{member} does not resolve" for member in public if not hasattr(package, member)]
    return wrong + ([f"{name}.no_such_name resolves"] if hasattr(package, "no_such_name") else [])


def long_functions(text, where):
    """Functions over the limits of lines and parameters; `self` and `cls` do not count."""
    wrong = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        own = positional[:1] in (["self"], ["cls"])
        parameters = len(positional) + len(node.args.kwonlyargs) + bool(node.args.vararg) + bool(node.args.kwarg) - own
        wrong += [f"{where} {node.name}: {lines} lines"] if lines > MAX_FUNCTION_LINES else []
        wrong += [f"{where} {node.name}: {parameters} parameters"] if parameters > MAX_PARAMETERS else []
    return wrong


def too_long(text, most):
    return len(text.splitlines()) > most


def python_files(*folders):
    return {str(path.relative_to(ROOT)): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def homeless_test_folders(root):
    """Folders of tests/calib, tests/engines and tests/edge that are named after no room."""
    return sorted(
        str(folder.relative_to(root / "tests"))
        for package in PACKAGES
        for folder in (root / "tests" / package).rglob("*")
        if folder.is_dir() and folder.name != "__pycache__" and not (root / folder.relative_to(root / "tests")).is_dir()
    )


def none_of(offenders, advice=""):
    """Fails with all offenders, one a line."""
    assert not offenders, "\n".join([advice, *map(str, offenders)])


def test_there_is_something_to_read():
    assert {name.split(".")[0] for name in SOURCES} == set(PACKAGES)
    assert len(SOURCES) > 200
    assert sum(map(len, GRAPH.values())) > 500


def test_imports_run_one_way_between_packages():
    none_of(upward_packages(GRAPH))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way_between_rooms(package):
    none_of(without_place(SOURCES, package, ROOMS[package]), "give it a place in ROOMS")
    none_of(upward_rooms(GRAPH, package, ROOMS[package]))


def test_nothing_is_imported_in_a_circle():
    """Neither at the level of files nor through imports inside functions, for type checking, or of lazy names."""
    none_of(circles(GRAPH))


def test_modules_do_not_import_their_own_face():
    none_of(own_faces(GRAPH))


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library):
    names, door = DOORS[library]
    none_of(other_doors(SOURCES, names, door))


def test_onnxruntime_has_one_door_in_calib():
    calib = {name: source for name, source in SOURCES.items() if name.split(".")[0] == "calib"}
    none_of(other_doors(calib, ("onnxruntime",), "calib.ort_session"))
    assert other_doors(calib, ("onnxruntime",), "calib.nowhere") == ["calib.ort_session"]


def test_the_door_to_tensorrt_is_used():
    assert other_doors(SOURCES, TENSORRT, "engines.nowhere") == ["engines.trt.api"]


def test_packages_load_no_heavy_library():
    none_of(loaded_by(*(name for name, source in SOURCES.items() if source.package)))


def test_loading_is_noticed():
    assert "onnx" in loaded_by("calib.graph")


def test_public_names_are_stated_sorted_and_resolve():
    none_of([wrong for name in FACES for wrong in wrong_in_face(importlib.import_module(name))])


def test_files_are_small_and_named_by_a_concept():
    files = python_files(*PACKAGES, "scripts")
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    none_of([name for name, text in texts.items() if too_long(text, MAX_LINES)])
    none_of([name for name, path in files.items() if set(Path(name).with_suffix("").parts) & set(FORBIDDEN_NAMES)])
    tests = python_files("tests")
    none_of([name for name, path in tests.items() if too_long(path.read_text(encoding="utf-8"), MAX_TEST_LINES)])


def test_functions_are_small():
    files = python_files(*PACKAGES, "scripts")
    none_of([wrong for name, path in files.items() for wrong in long_functions(path.read_text(encoding="utf-8"), name)])


def test_tests_mirror_the_packages():
    none_of(homeless_test_folders(ROOT))


# What the laws find when it is planted.


def planted(**sources):
    """The import graph of modules that no file has; `edge__camera` is edge.camera, a package if another lies in it."""
    texts = {name.replace("__", "."): text for name, text in sources.items()}
    packages = {name for name in texts if any(other.startswith(f"{name}.") for other in texts)}
    return import_graph({name: Source(text, name in packages) for name, text in texts.items()})


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("calib", "import engines"),
        ("calib", "import engines.build as b"),
        ("calib", "from edge.model import config"),
        ("calib", "def f():\n    from engines.build_spec import BuildSpec"),
        ("calib", "if TYPE_CHECKING:\n    import edge"),
        ("engines", "try:\n    import edge.cli\nexcept ImportError:\n    pass"),
        ("engines", "import importlib\nimportlib.import_module('edge.model.export')"),
        ("engines", "from importlib import import_module\n_P = {'f': 'edge.model.export'}\nimport_module(_P['f'])"),
        ("engines", "from importlib import import_module\nfor name in ('os', 'edge.model'):\n    import_module(name)"),
        ("engines", "from importlib import import_module\nimport_module(f'edge.{name}')"),
        ("engines", "__import__('edge')"),
    ],
)
def test_an_upward_import_is_found(package, source):
    graph = planted(**{f"{package}__planted": source}, engines="", engines__build="", edge="", edge__model="", edge__cli="")
    (found,) = upward_packages(graph)
    assert found.startswith(f"{package}.planted -> ")


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
    graph = planted(**{f"{package}__planted": source}, calib__files="", calib__graph="", engines="", edge="", edge__model="")
    assert upward_packages(graph) == []


def test_a_relative_import_is_read_against_its_own_place():
    graph = planted(
        edge__a="", edge__a__b="from . import c\nfrom ..d import e", edge__a__c="", edge__d="from .a.c import f", edge=""
    )
    assert graph["edge.a.b"] == ["edge.a.c", "edge.d"]
    assert graph["edge.d"] == ["edge.a.c"]
    assert planted(edge__a="from .b import c", edge__a__b="")["edge.a"] == ["edge.a.b"]


@pytest.mark.parametrize(
    "low",
    ["from edge.cli import run", "def f():\n    import edge.cli.main", "if TYPE_CHECKING:\n    from edge.cli.main import app"],
)
def test_an_upward_room_is_found(low):
    graph = planted(edge__images__npz=low, edge__cli="from edge.images.npz import x", edge__cli__main="")
    (found,) = upward_rooms(graph, "edge", ROOMS["edge"])
    assert found.startswith("edge.images.npz -> edge.cli")
    assert upward_rooms(planted(edge__progress="import edge.images", edge__images=""), "edge", ROOMS["edge"]) == [
        "edge.progress -> edge.images"
    ], "a loose module has its place too"
    assert without_place({"edge.images.npz": "", "edge.cellar.wine": "", "edge": ""}, "edge", ROOMS["edge"]) == ["cellar"]


def test_a_circle_is_found_in_files_in_functions_and_inside_a_package():
    at_file_level = planted(calib__a="import calib.b", calib__b="from calib.c import x", calib__c="import calib.a")
    assert circles(at_file_level) == [["calib.a", "calib.b", "calib.c"]]
    in_a_function = planted(edge__a="import edge.b", edge__b="def f():\n    from edge.a import x")
    assert circles(in_a_function) == [["edge.a", "edge.b"]]
    inside = planted(
        edge__camera="", edge__camera__a="import edge.camera.web.b", edge__camera__web__b="from edge.camera.a import x"
    )
    assert circles(inside) == [["edge.camera.a", "edge.camera.web.b"]]
    assert circles(planted(calib__a="import calib.b\nimport calib.c", calib__b="import calib.c", calib__c="")) == []


def test_a_circle_through_a_face_is_found():
    face = "if TYPE_CHECKING:\n    from edge.gate.a import f"
    graph = planted(edge__gate=face, edge__gate__a="from edge.gate import g", edge__cli="from edge.gate import f")
    assert circles(graph) == [["edge.gate", "edge.gate.a"]]
    assert own_faces(graph) == ["edge.gate.a -> edge.gate"]


@pytest.mark.parametrize(
    "source",
    [
        "import tensorrt",
        "import tensorrt as trt",
        "from tensorrt_rtx import Builder",
        "def f():\n    import tensorrt_rtx",
        "import importlib as i\ni.import_module('tensorrt.tensorrt')",
        "from importlib import import_module\n_M = {'rtx': 'tensorrt_rtx'}\nimport_module(_M['rtx'])",
        "from importlib import import_module\nfor name in ('tensorrt', 'tensorrt_bindings'):\n    import_module(name)",
    ],
)
def test_another_door_is_found(source):
    sources = {"engines.trt.api": Source(source), "engines.window": Source(source)}
    assert other_doors(sources, TENSORRT, "engines.trt.api") == ["engines.window"]
    assert other_doors(
        {"edge.fleet.head": Source("import ray"), "edge.cli.x": Source("import ray")}, ("ray",), "edge.fleet"
    ) == ["edge.cli.x"]


def test_a_mention_of_tensorrt_is_no_door():
    text = "versions('tensorrt_rtx')\nfrom engines.trt import api as trt_api\nx = {'a': 'tensorrt'}"
    assert other_doors({"engines.window": Source(text)}, TENSORRT, "engines.trt.api") == []


def test_a_wrong_face_is_found(monkeypatch):
    import calib as package

    assert wrong_in_face(ast) == ["ast: no __all__"]
    monkeypatch.setattr(package, "__all__", ["zeta", "METHODS", "graph"])
    found = wrong_in_face(package)
    assert any(text.startswith("calib.graph is a module too") for text in found)
    assert "calib: __all__ is not sorted, or names one twice" in found
    assert "calib.zeta does not resolve" in found
    assert sorted(["zeta", "Beta", "alpha", "GAMMA"], key=isort_key) == ["GAMMA", "Beta", "alpha", "zeta"]


def test_what_is_too_long_is_found(tmp_path):
    body = "\n".join(["    x = 1"] * MAX_FUNCTION_LINES)
    assert long_functions(f"def f():\n{body}", "a") == ["a f: 61 lines"]
    assert long_functions(
        f"class A:\n    def f(self, a, b, c, d, e, f, g, h): ...\n    async def g(self, {'a, b, c, d, e, f, g'}, *h, i): ...",
        "a",
    ) == ["a g: 9 parameters"]
    assert too_long("\n" * 301, 300)
    assert not too_long("\n" * 300, 300)
    for folder in ("edge/camera", "tests/edge/camera", "tests/edge/cellar", "tests/calib", "tests/engines"):
        (tmp_path / folder).mkdir(parents=True)
    assert homeless_test_folders(tmp_path) == ["edge/cellar"]
