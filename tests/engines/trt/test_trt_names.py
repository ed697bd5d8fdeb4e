"""Check every TensorRT name in the project's source without running it: by a simple rule, and by mypy with typed copies."""

from __future__ import annotations

import itertools
import os
import re
import shutil

import pytest
from trt_bindings import NEWEST, OLDEST, ROOT, RTX, WHEELS, release
from trt_names import FILES, asked_of_tensorrt, feature_tests, importers, source
from trt_typing import ROOT_CLASS, STUB, TYPES, UNTYPED, mypy_errors, stub, typed_copy, unknown

pytestmark = pytest.mark.slow

WITHOUT_OBJECTS = {
    "engines/trt/__init__.py": "exports their names",
    "edge/runtime/engine_runner.py": "asks for the version only",
    "edge/inspect/describe_engine_layers.py": "passes an engine between methods of Runtime",
}
RTX_ONLY = {
    "ComputeCapability": "Builder.set_compute_capabilities, which engines/trt/rtx_backend.py alone calls",
    "num_compute_capabilities": "likewise",
    "set_compute_capability": "likewise",
    "create_runtime_config": "10.13 and newer; TrtRunner._rtx_config uses it with TensorRT-RTX only",
    "dynamic_shapes_kernel_specialization_strategy": "TrtRunner._rtx_config",
    "EAGER": "likewise",
    "cuda_graph_strategy": "likewise",
    "WHOLE_GRAPH_CAPTURE": "likewise",
}
"""Names that may be missing in TensorRT -> the reason; the drives show that they are not reached there."""


def misfits(text: str) -> dict[str, str]:
    """Name -> the first release that lacks it, of the TensorRT names that a source uses without a feature test."""
    names = {version: release(version).names() for version in (*WHEELS, RTX)}
    missing_in = {name: next((v for v in names if name not in names[v]), "") for name in asked_of_tensorrt(text)}
    excused = {n for n in (*feature_tests(text), *RTX_ONLY) if any(n in known for known in names.values())}
    return {name: version for name, version in missing_in.items() if version and name not in excused}


@pytest.mark.parametrize("file", FILES)
def test_every_release_has_the_names(file):
    assert misfits(source(file)) == {}


def test_no_other_file_uses_tensorrt():
    assert {*importers("engines.trt.api"), "engines/trt/api.py"} == {*FILES, *WITHOUT_OBJECTS} - {"edge/runtime/trt_io.py"}
    assert "edge/runtime/trt_runner.py" in importers("edge.runtime.trt_io")
    for file in WITHOUT_OBJECTS:
        assert asked_of_tensorrt(source(file)) == {}


def test_feature_tests_are_spelled_right():
    known = set().union(*(release(version).names() for version in (*WHEELS, RTX)))
    for file in FILES:
        own = {name for name in feature_tests(source(file)) if name.startswith("_")}
        assert feature_tests(source(file)) - known - own == set()


def test_names_only_for_rtx_are_used_and_exist_only_there():
    asked = {name for file in FILES for name in asked_of_tensorrt(source(file))}
    assert RTX_ONLY.keys() <= asked & release(RTX).names()
    assert all(any(name not in release(version).names() for version in WHEELS) for name in RTX_ONLY)


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("engines/trt/api.py", ".create_builder_config(", ".create_bulder_config(", "create_bulder_config"),
        ("engines/trt/api.py", ".STRONGLY_TYPED)", ".EXPLICIT_BATCH)", "EXPLICIT_BATCH"),
        ("engines/trt/api.py", ".BuilderFlag.TF32)\n        if", ".BuilderFlag.FP16)\n        if", "FP16"),
        ("engines/trt/api.py", "self.module.OnnxParser(", "self.module.IInt8EntropyCalibrator2(", "IInt8EntropyCalibrator2"),
        ("engines/trt/network.py", "network.num_inputs", "network.nb_inputs", "nb_inputs"),
        ("edge/runtime/trt_io.py", "engine.num_io_tensors", "engine.num_bindings", "num_bindings"),
        ("edge/runtime/trt_runner.py", ".execute_async_v3(", ".execute_async_v2(", "execute_async_v2"),
        ("edge/runtime/trt_runner.py", ".set_tensor_address(", ".set_tensor_adress(", "set_tensor_adress"),
    ],
)
def test_a_wrong_name_is_found(file, old, new, name):
    assert old in source(file)
    assert name in misfits(source(file).replace(old, new))


def test_a_misspelled_feature_test_excuses_nothing():
    text = source("engines/trt/api.py").replace('"progress_monitor"', '"progres_monitor"')
    assert "progres_monitor" in feature_tests(text)
    assert misfits(text.replace("config.progress_monitor", "config.progres_monitor")) == {"progres_monitor": OLDEST}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """errors(version, (file, old, new)...): mypy's errors in the typed copy with these changes."""
    folder, cache = tmp_path_factory.mktemp("typed"), tmp_path_factory.mktemp("cache")
    for package in ("calib", "engines", "edge"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("assets", "__pycache__"))

    clock = itertools.count(1)

    def write(file, text):
        (folder / file).write_text(text, encoding="utf-8")
        os.utime(folder / file, (now := next(clock), now))  # mypy treats files of the same second and size as unchanged

    def errors(version, *changes):
        write(f"{STUB}.pyi", stub(release(version)))
        for file in FILES:
            text = source(file)
            for _, old, new in (c for c in changes if c[0] == file):
                assert old in text
                text = text.replace(old, new)
            write(file, typed_copy(text))
        return [error for error in mypy_errors(folder, list(FILES), cache) if not _is_excused(error)]

    return errors


def _is_excused(error) -> bool:
    """A name with a feature test in the file, or of TensorRT-RTX, on a class that has it in some release.

    Also a member of an enumeration that mypy considers optional although it was checked.
    """
    file, _, text = error
    missing = re.match(r'(?:Item )?"(?:type\[)?(\w+)\]?".* has no attribute "(\w+)"', text)
    if missing is None:
        return 'type "Any | None"; expected "ComputeCapability"' in text
    owner, name = missing.groups()
    releases = [release(version) for version in (*WHEELS, RTX)]
    exists = any(r.member(owner, name) or (owner == ROOT_CLASS and name in r.classes) for r in releases)
    return exists and name in {*feature_tests(source(file)), *RTX_ONLY}


@pytest.mark.parametrize("version", [*WHEELS, RTX])
def test_mypy_accepts_the_code_with_every_release(typed, version):
    assert typed(version) == []


def test_every_tensorrt_object_is_typed():
    assert {file: unknown(source(file)) for file in FILES if unknown(source(file))} == {}
    text = "".join(map(source, FILES))
    assert [name for name in (*TYPES, *UNTYPED) if not re.search(rf"\b{name}\b", text)] == []
    assert unknown("def f(thing: Any) -> None: ...") == ["line 1: thing"]


@pytest.mark.parametrize(
    ("version", "file", "old", "new", "message"),
    [
        (
            OLDEST,
            "engines/trt/api.py",
            ".create_builder_config(",
            ".create_bulder_config(",
            'no attribute "create_bulder_config"',
        ),
        (NEWEST, "engines/trt/api.py", ".STRONGLY_TYPED)\n", ".EXPLICIT_BATCH)\n", 'no attribute "EXPLICIT_BATCH"'),
        (NEWEST, "engines/trt/api.py", "BuilderFlag.TF32)\n", "BuilderFlag.FP16)\n", 'no attribute "FP16"'),
        (
            OLDEST,
            "engines/trt/api.py",
            "set_flag(self.module.BuilderFlag.",
            "set_flag(self.module.TacticSource.",
            "no attribute",
        ),
        (OLDEST, "engines/trt/api.py", "network(strongly_typed)", "network(flag=strongly_typed)", 'keyword argument "flag"'),
        (
            NEWEST,
            "engines/trt/api.py",
            "serialized_network(network, config)",
            "serialized_network(network)",
            "No overload variant",
        ),
        (
            OLDEST,
            "engines/trt/api.py",
            "serialized_network(network, config)",
            "serialized_network(config, network)",
            "incompatible type",
        ),
        (
            OLDEST,
            "engines/trt/api.py",
            "_verbosity = self.module.ProfilingVerbosity.DETAILED",
            "_verbosity = 2",
            "Incompatible types",
        ),
        (OLDEST, "engines/trt/api.py", "phase_name: str, step: int)", "phase_name: str)", "incompatible with supertype"),
        (OLDEST, "engines/trt/network.py", "network.num_inputs", "network.num_io_tensors", 'no attribute "num_io_tensors"'),
        (
            NEWEST,
            "edge/runtime/trt_runner.py",
            "execute_async_v3(self._stream.handle)",
            "execute_async_v3()",
            "Missing positional argument",
        ),
        (NEWEST, "edge/runtime/trt_runner.py", "buffer.address)", "str(buffer))", "incompatible type"),
        (NEWEST, "edge/runtime/trt_io.py", "module.TensorIOMode.INPUT", "module.TensorFormat.INPUT", 'no attribute "INPUT"'),
    ],
)
def test_mypy_finds(typed, version, file, old, new, message):
    errors = typed(version, (file, old, new))
    assert [error for error in errors if error[0] == file and message in error[2]], errors
