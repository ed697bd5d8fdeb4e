"""Run the project's TensorRT code with the API of every supported release, without a GPU and without TensorRT.

Oracle: the real bindings of 10.3, 10.13, 10.16 and 11.4 (trt_bindings.py), and TensorRT-RTX. The code runs on a stand-in with
exactly the API that a release declares (trt_fake.py). Its acceptance and rejection of calls are compared with TensorRT-RTX,
which runs here. The results that a real library returns are not tested here.
"""

from __future__ import annotations

import ast
import importlib
import re

import pytest
import trt_bindings
from trt_battery import answers
from trt_bindings import NEWEST, OLDEST, RTX, WHEELS, bindings, release, run_python, typeshed
from trt_drives import DRIVES, ONLY, drive
from trt_fake import Library
from trt_names import FILES, asked_of_tensorrt, feature_tests, source
from trt_spec import Argument, Signature, parse_signature
from trt_world import variant

CASES = [(name, version) for name in DRIVES for version in (*WHEELS, RTX) if ONLY.get(name, lambda _version: True)(version)]
FOUND_BY_NAME = {("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"): "an option's value, looked up in `_member`"}
API, RUNNER = "engines.trt.api", "edge.runtime.trt_runner"


@pytest.mark.parametrize("version", [*WHEELS, RTX])
def test_the_dump_is_of_that_release(version):
    dump = release(version)
    assert version in (dump.version, RTX)
    assert len(dump.classes) > 150
    methods = {f"{c.name}.{n}": m for c in dump.classes.values() for n, m in c.members.items() if m.kind == "method"}
    assert {n for n, m in methods.items() if not m.signatures and not n.endswith("__")} <= {"ErrorCode.name"}


def test_releases_differ_as_documented():
    """Facts of the release notes: names that 11 dropped, values of a flag that differ, names that every 10.x lacks."""
    flags = {v: release(v).classes["NetworkDefinitionCreationFlag"].enum for v in WHEELS}
    assert {v: flags[v]["STRONGLY_TYPED"][0] for v in WHEELS} == {v: 0 if v == NEWEST else 1 for v in WHEELS}
    assert {v for v in WHEELS if "EXPLICIT_BATCH" in flags[v]} == WHEELS.keys() - {NEWEST}
    assert {v for v in WHEELS if "FP16" in release(v).classes["BuilderFlag"].enum} == WHEELS.keys() - {NEWEST}
    assert {v for v in WHEELS if "IInt8EntropyCalibrator2" in release(v).classes} == WHEELS.keys() - {NEWEST}
    assert not any(release(v).member("ICudaEngine", "num_bindings") for v in WHEELS)
    assert release(OLDEST).member("ICudaEngine", "create_runtime_config") is None
    assert {str(m) for m in release(OLDEST).classes["ILogger.Severity"].enum.values()} >= {"(1, 'Severity.ERROR')"}


def test_signatures_agree_with_an_independent_parser():
    """tensorrt-stubs (MIT) was generated from the bindings of 10.13 by pybind11-stubgen, without write-only properties.

    It is read as text: mypy cannot parse it (a parameter named `in`), and ignores it without py.typed.
    """
    text = (typeshed("tensorrt-stubs", "10.13.0.35.1") / "tensorrt_bindings" / "tensorrt.pyi").read_text(encoding="utf-8")
    text = re.sub(r"\bin: ", "in_: ", text).replace(
        "= None, channel_axis: int)", "= None, channel_axis: int = ...)"
    )  # valid Python only with these changes
    dump = release("10.13.0.35")
    others = {name: members for cls in ast.parse(text).body if isinstance(cls, ast.ClassDef) for name, members in _stub(cls)}
    assert others.keys() - dump.classes.keys() == {"Logger.Severity"}
    assert dump.classes.keys() <= others.keys()
    differing = set()
    for name, cls in dump.classes.items():
        ours = {n: [_shape(s) for s in m.signatures] for n, m in cls.members.items() if not n.startswith("_")}
        theirs = {n: shapes for n, shapes in others[name].items() if not n.startswith("_")}
        differing |= {
            f"{name}.{n}" for n in ours.keys() | theirs.keys() if sorted(ours.get(n, "-")) != sorted(theirs.get(n, "-"))
        }
    assert differing == {
        *("Builder.gpu_allocator", "Runtime.gpu_allocator", "IExecutionContext.device_memory"),  # write-only
        *("ISymExpr.type", "ISymExpr.dtype", "ISymExpr.expr"),  # likewise
        "INetworkDefinition.add_scale_nd",  # repaired above
        "ErrorCode.name",  # a method there, which 10.13 has as a property
    }


def _stub(cls: ast.ClassDef, outer: str = ""):
    """(class, {member: [shape of each overload], none for a property}) of a .pyi, classes within classes included."""
    members: dict[str, list] = {}
    for node in cls.body:
        if isinstance(node, ast.ClassDef):
            members[node.name] = []
            yield from _stub(node, f"{outer}{cls.name}.")
        elif isinstance(node, ast.AnnAssign):
            members[node.target.id] = []
        elif isinstance(node, ast.FunctionDef):
            shapes = members.setdefault(node.name, [])
            if not any("property" in (d := ast.unparse(x)) or "setter" in d for x in node.decorator_list):
                required = len(node.args.args) - len(node.args.defaults)
                arguments = [(a.arg.rstrip("_"), i >= required) for i, a in enumerate(node.args.args) if a.arg != "self"]
                shapes.append(tuple(arguments))
    yield f"{outer}{cls.name}", members


def _shape(signature: Signature) -> tuple:
    return tuple((a.name, a.optional) for a in signature.arguments)


def test_signatures_are_parsed():
    line = "f(self: t.X, t: List[Tuple[int, a::b::Y]], e: tensorrt.E = <E.A: 0>, /, n: str = 'x', in: int) -> Dict[str, int]"
    assert parse_signature(line) == Signature(
        (
            Argument("t", "list[tuple[int, Y]]", optional=False, positional_only=True),
            Argument("e", "E", optional=True, positional_only=True),
            Argument("n", "str", optional=True, positional_only=False),
            Argument("in", "int", optional=False, positional_only=True),
        ),
        "dict[str, int]",
    )
    assert parse_signature("(arg0: tensorrt.A, arg1: float) -> None").arguments == (Argument("arg1", "float", False, True),)


def test_the_stand_in_accepts_and_rejects_like_the_real_library():
    stand_in = Library(release(RTX), {}).module
    expected, results = answers(importlib.import_module(RTX)), answers(stand_in)
    assert len(expected) > 90
    assert {s: (results[s], expected[s]) for s in expected if results[s] != expected[s]} == {}
    assert {"AttributeError", "TypeError", "IndexError", "fine"} <= set(expected.values())


REAL = """
import threading
from engines.trt import api as trt_api
module, lines = trt_api.load("trt"), []
logger = trt_api._make_logger(module, lines)
logger.log(module.ILogger.Severity.ERROR, "no")
logger.log(module.ILogger.Severity.VERBOSE, "details")
trt_api._make_monitor(module, print, threading.Event()).step_complete("Build", 0)
print(trt_api.version("trt"), module.__name__, lines)
"""


@pytest.mark.parametrize("version", WHEELS)
def test_callbacks_work_with_the_real_bindings(version):
    assert run_python(["-c", REAL], bindings(version)) == f"{version} tensorrt ['ERROR: no']\n"


@pytest.mark.parametrize(("name", "version"), CASES)
def test_drive(name, version):
    world = drive(name, release(version))
    tested = set().union(*(feature_tests(source(file)) for file in FILES))
    assert {m for m in world.missed() if m not in FOUND_BY_NAME and m[1] not in tested} == set()


@pytest.mark.slow
def test_drives_use_every_name_in_the_code():
    touched = set().union(*(drive(name, release(version)).touched() for name, version in CASES))
    asked = {name for file in FILES for name in asked_of_tensorrt(source(file))}
    assert asked - touched - {"__version__"} == set()


NO_NAME, NO_CALL, EVERY = AttributeError, TypeError, tuple(WHEELS)
VERBOSITY = "config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED"
FLAG = "int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)"
SHAPES = "set_shape(name, *triple)"
FINISH = "def phase_finish(self, phase_name: str)"
MISTAKES = [
    ("a misspelled method", "builder", EVERY, ".create_builder_config()", ".create_bulder_config()", NO_NAME),
    ("a misspelled property", "builder", EVERY, VERBOSITY, VERBOSITY.replace("verbosity", "verbosty"), NO_NAME),
    ("a property of old", "runtime", EVERY, "engine.create_engine_inspector()", "engine.num_bindings", NO_NAME),
    ("a keyword of another name", "builder", EVERY, "create_network(strongly", "create_network(flag=strongly", NO_CALL),
    ("too few arguments", "builder", EVERY, "network(network, config)", "network(network)", NO_CALL),
    ("too many arguments", "builder", EVERY, SHAPES, "set_shape(name, *triple, None)", NO_CALL),
    ("shapes for a shape", "builder", EVERY, SHAPES, "set_shape(name, triple, triple, triple)", NO_CALL),
    ("a number for an enumeration", "builder", EVERY, VERBOSITY, "config.profiling_verbosity = 2", NO_CALL),
    ("text for bytes", "runtime", EVERY, "cuda_engine(engine)", "cuda_engine(str(engine))", NO_CALL),
    ("a base without its constructor", "builder", EVERY, "module.ILogger.__init__(self)", "pass", NO_CALL),
    ("an override of fewer arguments", "builder", EVERY, FINISH, "def phase_finish(self)", NO_CALL),
    ("an override of another name", "builder", EVERY, "def step_complete(", "def step_completed(", NO_CALL),
    ("a calibrator", "builder", (NEWEST,), VERBOSITY, "self.module.IInt8EntropyCalibrator2", NO_NAME),
    ("a precision flag", "builder", (NEWEST,), VERBOSITY, "config.set_flag(self.module.BuilderFlag.FP16)", NO_NAME),
    ("explicit batch", "builder", (NEWEST,), FLAG, FLAG.replace("STRONGLY_TYPED", "EXPLICIT_BATCH"), NO_NAME),
    ("a flag by its number", "builder", (NEWEST,), FLAG, "1", AssertionError),
]


@pytest.mark.parametrize(("what", "name", "versions", "old", "new", "error"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_drive_finds(what, name, versions, old, new, error):
    code = variant(API, (old, new))
    for version in versions:
        with pytest.raises(error):
            drive(name, release(version), code)


@pytest.mark.parametrize("new", ["self.module.IInt8EntropyCalibrator2", "self.module.BuilderFlag.FP16"])
def test_names_that_11_removed_work_with_the_oldest_release(new):
    drive("builder", release(OLDEST), variant(API, (VERBOSITY, f"{new}; {VERBOSITY}")))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("execute_async_v3(self._stream.handle)", "execute_async_v2([], self._stream.handle)", NO_NAME),
        ("set_tensor_address(buffer.name, buffer.address)", "set_tensor_address(buffer.name, buffer)", NO_CALL),
        ("set_tensor_address(buffer.name, buffer.address)", "set_tensor_address(0, buffer.address)", NO_CALL),
        ("set_input_shape(name,", "set_binding_shape(name,", NO_NAME),
        ("get_tensor_shape(port.name)", "get_tensor_shape()", NO_CALL),
    ],
)
def test_a_drive_of_the_runner_finds(old, new, error):
    code = variant(RUNNER, (old, new))
    for version in (*WHEELS, RTX):
        with pytest.raises(error):
            drive("runner", release(version), code)


def test_a_script_may_only_use_names_of_the_release():
    with pytest.raises(AssertionError, match="num_bindings"):
        Library(release(NEWEST), {("ICudaEngine", "num_bindings"): 2})
    library = Library(release(NEWEST), {("ICudaEngine", "num_io_tensors"): "two"})
    with pytest.raises(AssertionError, match="num_io_tensors"):
        library.new("ICudaEngine").num_io_tensors  # noqa: B018  # the attribute access is tested


def test_these_tests_are_skipped_for_a_reason_and_never_in_ci(monkeypatch, tmp_path):
    monkeypatch.setattr(trt_bindings, "CACHE", tmp_path)
    monkeypatch.setitem(trt_bindings.WHEELS, "0.0", "tensorrt-cu12-bindings")
    monkeypatch.setitem(trt_bindings._refused, "tensorrt-cu12-bindings==0.0", "no such wheel")
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no such wheel"):
        bindings("0.0")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such wheel"):
        bindings("0.0")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["0.0.lock"]
