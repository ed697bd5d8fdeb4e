"""What is asked of a build from a bundle besides the bundle; earlier builds, stamps, precisions; what a device needs."""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from bundle_contents import (
    ARRAYS,
    DEVICE_FILES,
    GRAPH,
    VERDICT_FILES,
    alter,
    contents,
    device,
    files,
    json_of,
    pack,
    preprocess_fields,
    refused,
    refused_to_pack,
)
from kill_at_rename import exit_codes
from tiny_project import command, sha256

from calib.errors import MissingError
from edge.cli import run
from engines.build_folder.folder import BuildFolder
from engines.build_folder.under_construction import MARK
from engines.build_folder.verify import verify_folder
from engines.trt import api

pytestmark = pytest.mark.slow

try:
    api.load("rtx")
except MissingError as missing:
    pytest.skip(f"{missing}", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[3]


SUPPORT = ROOT / "tests" / "support"


@pytest.fixture
def project(rtx, tmp_path, tiny_size):
    """A writable copy of it."""
    shutil.copytree(rtx, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_what_a_bundle_answers_is_not_asked_again(project, capsys):
    arguments = ["build", "--bundle", str(project / "b.ufovit"), "--target", "rtx", "--out", str(project / "device")]
    for extra, says in (
        (["ufovit_tiny", "int8"], "MODEL, PRECISION"),
        (["--max-drop", "0.5"], "--max-drop"),
        (["--data", "x", "--calib-data", "y"], "--data, --calib-data"),
        (["--batch", "1"], "--batch"),
        (["--random-weights"], "--random-weights"),
        (["--backend", "torch-tensorrt"], "--backend"),
    ):
        assert run([*arguments, *extra]) == 2
        error = capsys.readouterr().err
        assert "--bundle cannot be combined with these arguments and options" in error
        assert [name for name in says.split(", ") if name not in error] == [], error
    assert run(["build"]) == 2
    assert "MODEL and PRECISION are missing" in capsys.readouterr().err
    assert not (project / "device").exists()


@pytest.mark.parametrize(
    ("target", "options", "code", "says"),
    [
        ("cpu", [], 2, "a bundle can be built for a GPU only"),
        ("orin-nano", [], 4, "orin-nano must be built on the Orin Nano itself"),
        ("xavier-nx", [], 2, "not supported"),
        ("toaster", [], 2, "unknown target"),
        ("rtx", ["--workspace", "100"], 2, "--workspace"),
        ("rtx", ["--version-compatible"], 2, "--version-compatible"),
        ("rtx", ["--hardware-compatibility", "ampere_plus"], 2, "--hardware-compatibility"),
        ("rtx", ["--pin-timing-cache"], 2, "--pin-timing-cache"),
        ("rtx", ["--timing-cache", "x"], 2, "--timing-cache"),
        ("rtx", ["--optimization-level", "6"], 2, "optimization level"),
        ("rtx", ["--hardware-compatibility", "all"], 2, "for --hardware-compatibility"),
    ],
)
def test_targets_and_options_that_do_not_fit(project, capsys, monkeypatch, target, options, code, says):
    monkeypatch.setattr("engines.hardware.jetson_module", lambda: "")
    assert device(project, *options, target=target) == code
    assert says in capsys.readouterr().err
    assert not (project / "device").exists()


def test_rtx_knows_one_option(project, on_a_gpu):
    on_a_gpu()
    assert device(project, "--optimization-level", "1") == 0


def test_a_file_that_is_no_bundle(project, capsys):
    for path, says in (
        ("none.ufovit", "bundle not found"),
        ("tiny.safetensors", "not a bundle"),
        ("rtx", "not a regular file"),
    ):
        refused(project, capsys, 2, says, bundle=path)


def test_an_earlier_device_build_survives_what_is_refused(project, on_a_gpu, monkeypatch, capsys):
    """A library that is missing, a bundle that is damaged, preprocessing that differs: all found before anything is removed."""
    on_a_gpu()
    assert device(project) == 0
    before = {name: sha256(project / "device" / name) for name in files(project / "device")}
    good = (project / "b.ufovit").read_bytes()
    (project / "b.ufovit").write_bytes(good[:1000] + b"\0" + good[1001:])
    assert device(project) == 2
    (project / "b.ufovit").write_bytes(good)
    alter(project, manifest=preprocess_fields(mean=(0.4, 0.5, 0.5)))
    assert device(project) == 1
    (project / "b.ufovit").write_bytes(good)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert device(project, "--force") == 4
    assert "ufovit-edge[rtx]" in capsys.readouterr().err
    assert {name: sha256(project / "device" / name) for name in files(project / "device")} == before


def test_a_receipt_below_the_declared_share_ends_with_1_and_no_engine(project, capsys):
    alter(project, int8_floor=0.9)
    assert device(project) == 1
    error = capsys.readouterr().err
    assert "the INT8 share of the engine is below its floor" in error
    assert "stem.0/Conv: fp16" in error
    assert files(project / "device") == DEVICE_FILES - {"engine.engine", "manifest.json"} | {MARK}


def test_random_weights_stay_stamped(project, on_a_gpu, capsys):
    alter(project, random_weights=True, manifest={"random_weights": True})
    on_a_gpu()
    assert device(project) == 0
    assert "RANDOM WEIGHTS" in capsys.readouterr().out
    manifest, drift = json_of(project / "device/manifest.json"), json_of(project / "device/drift.json")
    assert "RANDOM WEIGHTS" in manifest["notes"][0]
    assert (manifest["random_weights"], drift["random_weights"], drift["judged_by"]) == (True, True, "numbers")


def test_a_bundle_of_a_device_build_is_refused(project, on_a_gpu, capsys):
    on_a_gpu()
    assert device(project) == 0
    refused_to_pack(project, capsys, "cannot be bundled again", "b.ufovit", source="device")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_builds_go_the_same_way(project, without_a_gpu, precision):
    assert run(command(project, precision=precision, target="rtx", out=project / precision, int8_floor=None)) == 0
    assert pack(project, source=precision, out=f"{precision}.ufovit") == 0
    expected = {"fp32": {"model.onnx"}, "fp16": {GRAPH, "certificate.json", "xnorm.json"}}[precision]
    assert set(contents(project / f"{precision}.ufovit")) == {"bundle.json", "manifest.json", *ARRAYS, *expected}
    assert device(project, bundle=f"{precision}.ufovit") == 3
    assert files(project / "device") == expected | {"engine.engine", "golden.npz", "manifest.json", "steps.json"}
    found, source = (json_of(project / folder / "manifest.json")["receipt"] for folder in ("device", precision))
    assert found == source


def test_killed_again_and_again_it_still_ends_the_same(project, on_a_gpu):
    """SIGKILL at the first rename, then at the second of what is left, and so on: the last run finishes."""
    on_a_gpu()
    assert device(project, out="whole") == 0
    arguments = ["build", "--bundle", str(project / "b.ufovit"), "--target", "rtx", "--out", str(project / "device")]
    answer_on_the_cpu = (
        "import edge.pipeline.build_from_bundle, onnx; from bundle_contents import Injected; "
        "from edge.runtime.ort_runner import emulated_runner; edge.pipeline.build_from_bundle.open_engine = "
        f"lambda _folder: Injected(emulated_runner(onnx.load({str(project / 'rtx' / GRAPH)!r}), Path('graph')))"
    )
    codes = []
    for code in exit_codes(arguments, prepare=answer_on_the_cpu):
        codes.append(code)
        verdict = files(project / "device") & VERDICT_FILES if (project / "device").exists() else set()
        assert not verdict or (project / "device/engine.engine").exists(), "no verdict about an engine that is not there"
        if codes[-1] != -signal.SIGKILL:
            break
    assert codes[-1] == 0
    assert codes.count(-signal.SIGKILL) >= 4
    assert files(project / "device") == files(project / "whole")
    for file in (GRAPH, "certificate.json", "xnorm.json", "calibration.json"):
        assert sha256(project / "device" / file) == sha256(project / "whole" / file)
    verify_folder(BuildFolder(project / "device"))


BARE = ("numpy", "cyclopts", "rich", "tensorrt_rtx")
ABSENT = ("onnx", "onnxruntime", "torch", "PIL", "scipy", "matplotlib", "jinja2", "safetensors", "cryptography", "pycuda")


def with_requirements(*names):
    """Installed distributions of these names, and of all that they require."""
    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # required on another system only
            continue
        left += [re.match(r"[\w.-]+", text)[0] for text in found[name].requires or () if "extra ==" not in text]
    return found.values()


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """An interpreter that finds numpy, cyclopts, rich and TensorRT-RTX, what these require, the toolkit, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    site = folder / "site"
    site.mkdir()
    for distribution in with_requirements(*BARE):
        for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(distribution.locate_file(top))
    for package in ("calib", "engines", "edge"):
        (site / package).symlink_to(ROOT / package)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(folder)}

    def python(*arguments):
        command = [str(folder / "env/bin/python"), "-B", *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False)

    return python


UFOVIT = "import sys; from edge.cli import run; sys.exit(run(sys.argv[1:]))"


def test_a_device_needs_numpy_and_tensorrt_only(rtx, bare_python, tmp_path):
    for name in ABSENT:
        done = bare_python("-c", f"import {name}")
        assert done.returncode == 1, name
        assert f"No module named '{name}'" in done.stderr, "the environment really lacks it"
    out = tmp_path / "device"
    arguments = ("-c", UFOVIT, "build", "--bundle", rtx / "b.ufovit", "--target", "rtx", "--out", out)
    done = bare_python(*arguments)
    assert done.returncode == 3, done.stderr  # no GPU runs it, for lack of pycuda if not of a GPU
    assert "its drift is unknown" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(out) == DEVICE_FILES
    manifest, source = json_of(out / "manifest.json"), json_of(rtx / "rtx/manifest.json")
    assert manifest["receipt"] == source["receipt"]
    assert manifest["receipt"]["int8_mac_fraction"] > 0.8
    assert manifest["engine"]["sha256"] == sha256(out / "engine.engine")
    assert manifest["bundle"]["sha256"] == sha256(rtx / "b.ufovit")
    again = bare_python(*arguments)
    assert again.returncode == 3
    assert again.stdout.count("unchanged, reused") == 2
    for command_line, code in ((("inspect", out / "manifest.json"), 0), (("verify", out), 0), (("doctor",), 0)):
        done = bare_python("-c", UFOVIT, *command_line)
        assert done.returncode == code, (command_line, done.stderr)
    done = bare_python("-c", UFOVIT, "bundle", rtx / "rtx", "--data", rtx / "test", "--out", tmp_path / "new.ufovit")
    assert done.returncode == 4, "bundles are made where the build was"
    assert "is not installed" in done.stderr
    damaged = tmp_path / "damaged.ufovit"
    data = (rtx / "b.ufovit").read_bytes()
    damaged.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    done = bare_python("-c", UFOVIT, "build", "--bundle", damaged, "--target", "rtx", "--out", tmp_path / "other")
    assert done.returncode == 2
    assert not (tmp_path / "other").exists()
