"""The real Python bindings of several TensorRT releases, on any x86-64 Linux machine, with neither a GPU nor TensorRT.

The wheels that hold only the bindings come from the package index into `build/trt-bindings/`, are never shipped, and are
imported in a process of their own against three stub libraries: every entry point is there and answers NULL. So the classes,
signatures and enumerations are NVIDIA's own; what the library would compute is not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from trt_spec import Release, read_release

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "trt-bindings"
WHEELS = {
    "10.3.0": "tensorrt-cu12-bindings",  # JetPack 6.1 and 6.2
    "10.13.0.35": "tensorrt-cu12-bindings",  # JetPack 7.0 and 7.1
    "10.16.1.11": "tensorrt-cu13-bindings",  # JetPack 7.2
    "11.4.0.106": "tensorrt-cu13-bindings",
}
OLDEST, NEWEST = "10.3.0", "11.4.0.106"
RTX = "tensorrt_rtx"
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
_STUB = "\n".join(f"void *{name}(void) {{ return 0; }}" for name in _ENTRY_POINTS)
_ALIAS = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
_PIP_SECONDS, _RUN_SECONDS = 300, 60
_refused: dict[str, str] = {}  # the package index is asked once, not by every test


@functools.cache
def release(version: str) -> Release:
    """The API of a release of WHEELS, or of the installed TensorRT-RTX for RTX; skips the test where it cannot be had."""
    if version == RTX:
        if importlib.util.find_spec(RTX) is None:
            unavailable("tensorrt_rtx is not installed")
        return read_release(json.loads(run_python([str(Path(__file__).with_name("trt_dump.py")), RTX])))
    program = [str(Path(__file__).with_name("trt_dump.py")), "tensorrt_bindings"]
    return read_release(json.loads(run_python(program, bindings(version))))


def run_python(arguments: list[str], *folders: Path) -> str:
    """What a fresh interpreter prints that finds modules in these folders and in the repository. Raises RuntimeError."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_RUN_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


@functools.cache
def bindings(version: str) -> Path:
    """A folder in which `import tensorrt` finds the bindings of a release. Made once, whole or not at all."""
    final = CACHE / version / str(sys.implementation.cache_tag)  # a wheel fits one version of Python
    with _locked(CACHE / f"{version}.lock"):
        if not final.is_dir():
            final.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{version}-") as temporary:
                made = Path(temporary) / "made"
                install(f"{WHEELS[version]}=={version}", made)
                _link_stubs(made / "tensorrt_bindings", version.partition(".")[0])
                (made / "tensorrt").mkdir()
                (made / "tensorrt" / "__init__.py").write_text(_ALIAS, encoding="utf-8")
                made.replace(final)
    return final


@functools.cache
def typeshed(name: str, version: str) -> Path:
    """A folder that holds the wheel of a package of type stubs, without what it depends on."""
    final = CACHE / f"{name}-{version}"
    with _locked(CACHE / f"{name}.lock"):
        if not final.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{name}-") as temporary:
                install(f"{name}=={version}", Path(temporary) / "made")
                (Path(temporary) / "made").replace(final)
    return final


def install(requirement: str, folder: Path) -> None:
    """One wheel, without what it depends on. Skips the test when the package index does not give it."""
    if requirement in _refused:
        unavailable(_refused[requirement])
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=1"]
    command = [sys.executable, *pip, "--target", str(folder), requirement]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = (error.stderr or str(error)).strip().splitlines()[-1]
        _refused[requirement] = f"{requirement} cannot be installed: {reason}"
        unavailable(_refused[requirement])


def _link_stubs(folder: Path, major: str) -> None:
    """Beside the bindings, where their RPATH looks first."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        unavailable("no C compiler, which the stubs of libnvinfer need")
    for library in _LIBRARIES:
        file = f"lib{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-x", "c", "-", "-o", str(folder / file)]
        subprocess.run(command, input=_STUB, capture_output=True, text=True, check=True)


def unavailable(reason: str) -> NoReturn:
    """Skip the test, but fail it under CI=true: there these tests must not vanish unnoticed."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: pytest-xdist's workers all come here first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
