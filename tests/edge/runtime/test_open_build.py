"""edge.runtime.open_build: which runner a build folder gets, and what is refused before anything runs.

The oracle of an answer is ONNX Runtime on the graph concerned, and the emulated graph where FP16 is typed in.
"""

import hashlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from tiny_project import sha256

from calib.errors import InputError, MissingError, VerdictError
from edge.cli import run
from edge.images.golden_pair import GOLDEN_ARTIFACT, GoldenPair, write_golden
from edge.runtime import open_build as module
from edge.runtime.engine_runner import EngineDevice
from edge.runtime.ort_runner import OrtRunner, emulated_runner
from edge.runtime.runner import FakeRunner
from engines.build_folder.folder import BuildFolder
from engines.build_folder.step_record import StepRecord, read_record, write_record
from engines.build_spec import BatchRange

pytestmark = pytest.mark.slow


def open_runner(folder, *arguments, public_key=None, threads=0):
    return module.open_runner(BuildFolder(folder, require_signature=public_key), *arguments, threads=threads)


def read_golden(path):
    return GOLDEN_ARTIFACT.parse(path.read_bytes(), path)


ROOT = Path(__file__).resolve().parents[3]
X = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="pip install 'ufovit-edge[openvino]'")
needs_cryptography = pytest.mark.skipif(find_spec("cryptography") is None, reason="pip install 'ufovit-edge[sign]'")


@pytest.fixture
def copy(rtx_built, tmp_path):
    """copy(precision) -> a writable build for `rtx`."""
    return lambda precision: Path(shutil.copytree(rtx_built(precision), tmp_path / precision))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(module, "gpus", lambda: ())
    monkeypatch.setattr(module, "jetson_module", lambda: "")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that answers with the fake runner; `gpu.refusal`, if set, is why it does not."""
    state = SimpleNamespace(refusal=None, loaded=[])

    def engine_device(manifest):
        if state.refusal is not None:
            raise state.refusal
        memory = SimpleNamespace(name="Fake GPU")
        return EngineDevice("rtx", memory, version_compatible=manifest.engine.version_compatible)

    class Engine(FakeRunner):
        def __init__(self, flavour, data, memory, *, version_compatible):
            assert (flavour, memory.name, version_compatible) == ("rtx", "Fake GPU", False)
            state.loaded.append(hashlib.sha256(data).hexdigest())
            super().__init__((3, 32, 32), 5)
            self.batches_taken, self.notes = (1, 2, 4), ["no graphs here"]

        @property
        def batches(self):
            return self.batches_taken

        @batches.setter
        def batches(self, _seen):
            pass

    monkeypatch.setattr(module, "engine_device", engine_device)
    monkeypatch.setattr("edge.runtime.engine_runner.TrtRunner", Engine)
    monkeypatch.setattr(module, "gpus", lambda: ("one",))
    return state


def without(monkeypatch, *names):
    """These distributions are not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in names else find_spec(name))


# A build for a CPU -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["auto", "ort"])
def test_a_cpu_build_runs_itself(built, runner):
    opened = open_runner(built / "out", runner)
    with opened.runner:
        np.testing.assert_array_equal(opened.runner(X)[0], OrtRunner(built / "out/engine.onnx")(X)[0])
    assert (opened.name, opened.ran_on, opened.notes) == ("ort", "ONNX Runtime, CPU: the engine itself", ())
    assert opened.manifest.model == "ufovit_tiny"
    assert opened.preprocess.image_size == 32
    assert opened.batch.min == 1
    np.testing.assert_array_equal(opened.golden.pixels, read_golden(built / "out/golden.npz").pixels)


@needs_openvino
def test_openvino_runs_its_graph_and_says_so(built):
    from edge.runtime.openvino_runner import OpenVinoRunner

    opened = open_runner(built / "out", "openvino", threads=1)
    with opened.runner, OpenVinoRunner(built / "out/model.int8.onnx", 1) as wanted:
        np.testing.assert_array_equal(opened.runner(X)[0], wanted(X)[0])
    assert opened.name == "openvino"
    assert opened.ran_on == "OpenVINO, CPU: the Q/DQ graph of the build, not the engine itself"
    assert not opened.itself
    assert any("drift.json" in note for note in opened.notes)


def test_no_gpu_runs_a_cpu_build(built):
    with pytest.raises(InputError, match=r"runner trt: the build's engine is for a CPU(.|\n)*allowed: ort, openvino"):
        open_runner(built / "out", "trt")


def test_names_and_numbers(built):
    with pytest.raises(InputError, match=r"unknown runner 'tensorrt'\n  where: --runner\n  allowed: auto, ort, openvino, trt"):
        open_runner(built / "out", "tensorrt")
    with pytest.raises(InputError, match="--threads is out of range"):
        open_runner(built / "out", threads=-1)


# A build for a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["auto", "trt"])
def test_with_its_gpu_the_engine_runs(rtx_built, gpu, runner):
    opened = open_runner(rtx_built("int8"), runner)
    assert (opened.name, opened.ran_on) == ("trt", "Fake GPU: the engine itself")
    assert opened.batch == BatchRange(1, 2, 4)
    assert opened.notes == ("no graphs here",)
    assert opened.itself
    assert gpu.loaded == [sha256(rtx_built("int8") / "engine.engine")]


@needs_openvino
def test_without_one_its_graph_by_openvino(rtx_built, no_gpu):
    opened = open_runner(rtx_built("int8"), threads=1)
    with opened.runner:
        wanted = OrtRunner(rtx_built("int8") / "model.int8.onnx")(X)[0]
        assert np.abs(opened.runner(X)[0] - wanted).max() < 0.1 * np.abs(wanted).max()
    assert opened.name == "openvino"
    assert opened.ran_on.endswith("before it was typed for FP16, not the engine itself")
    assert "the engine itself cannot run here: this machine has no NVIDIA GPU, or its driver shows none" in opened.notes


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_without_openvino_the_typed_graph_with_its_roundings(rtx_built, no_gpu, monkeypatch, precision):
    without(monkeypatch, "openvino")
    opened = open_runner(rtx_built(precision))
    path = rtx_built(precision) / "model.typed.onnx"
    np.testing.assert_array_equal(opened.runner(X)[0], emulated_runner(onnx.load(path), path)(X)[0])
    assert opened.name == "ort"
    assert "FP16 roundings emulated" in opened.ran_on
    assert opened.ran_on.endswith("not the engine itself")
    assert any("these times are not the engine's" in note for note in opened.notes)


def test_an_fp32_graph_is_run_as_it_is(rtx_built, no_gpu):
    opened = open_runner(rtx_built("fp32"))
    np.testing.assert_array_equal(opened.runner(X)[0], OrtRunner(rtx_built("fp32") / "model.onnx")(X)[0])
    assert opened.ran_on == "ONNX Runtime, CPU: the graph that the engine was built from, not the engine itself"


def test_openvino_would_leave_fp16_out(rtx_built, no_gpu):
    with pytest.raises(InputError, match=r"runner openvino(.|\n)*in FP32(.|\n)*next: --runner ort"):
        open_runner(rtx_built("fp16"), "openvino")


def test_an_engine_that_cannot_run_is_refused_in_one_sentence(rtx_built, no_gpu):
    with pytest.raises(MissingError) as refused:
        open_runner(rtx_built("int8"), "trt")
    lines = str(refused.value).splitlines()
    assert lines[0] == "runner trt: the engine cannot run here"
    assert lines[2] == "  found: this machine has no NVIDIA GPU, or its driver shows none"
    assert lines[-1].startswith("  next: --runner ort or --runner openvino")


def test_a_gpu_of_another_kind_is_told_of(rtx_built, gpu):
    gpu.refusal = MissingError("the engine was built for another GPU", found="compute capability 9.0", next_command="build")
    with pytest.raises(MissingError, match=r"found: the engine was built for another GPU found: compute capability 9\.0"):
        open_runner(rtx_built("int8"), "trt")
    opened = open_runner(rtx_built("int8"), "ort")
    assert opened.name == "ort"
    assert any("another GPU" in note for note in open_runner(rtx_built("fp32")).notes)


def test_a_device_without_any_runtime_says_both(rtx_built, no_gpu, monkeypatch):
    without(monkeypatch, "openvino", "onnxruntime", "onnx")
    with pytest.raises(MissingError) as refused:
        open_runner(rtx_built("int8"))
    text = str(refused.value)
    assert text.startswith("neither the engine nor its graph can run here")
    assert "no NVIDIA GPU" in text
    assert "is not installed" in text
    for runner, extra in (("ort", "build"), ("openvino", "openvino")):
        with pytest.raises(MissingError, match=rf"next: pip install 'ufovit-edge\[{extra}\]'"):
            open_runner(rtx_built("int8"), runner)


def test_a_device_folder_needs_four_files(copy, gpu, no_gpu, monkeypatch):
    """What a device gets: no graphs. The engine runs there, and elsewhere it is said what is missing."""
    folder = copy("int8")
    for path in folder.iterdir():
        if path.name not in ("golden.npz", "manifest.json", "steps.json", "engine.engine"):
            path.unlink()
    assert open_runner(folder).name == "trt"
    with pytest.raises(InputError, match=r"runner openvino: the folder lacks the graph(.|\n)*next: --runner ort"):
        open_runner(folder, "openvino")
    with pytest.raises(InputError, match=r"file is missing(.|\n)*model\.typed\.onnx"):
        open_runner(folder, "ort")


# What is checked first ---------------------------------------------------------------------------------------------------


def recorded(folder):
    """Record golden.npz as it is now: as a build on another machine would have."""
    steps = read_record(folder)
    written = {**steps["export"].writes, "golden.npz": sha256(folder / "golden.npz")}
    write_record(folder, {**steps, "export": StepRecord(steps["export"].reads, written)})


def spoil(folder, file):
    path = folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "file", ["engine.engine", "golden.npz", "manifest.json", "model.typed.onnx", "steps.json", "drift.json"]
)
@pytest.mark.parametrize("runner", ["auto", "ort", "trt"])
def test_a_file_that_was_changed_stops_every_runner(copy, gpu, file, runner):
    folder = copy("int8")
    spoil(folder, file)
    with pytest.raises(InputError) as refused:
        open_runner(folder, runner)
    assert file in str(refused.value)
    assert gpu.loaded == []


def test_a_graph_that_changes_between_check_and_use_is_refused(copy, no_gpu, monkeypatch):
    folder = copy("fp32")
    check = module.verify_folder

    def meanwhile(*arguments, **options):
        checked = check(*arguments, **options)
        spoil(folder, "model.onnx")
        return checked

    monkeypatch.setattr(module, "verify_folder", meanwhile)
    with pytest.raises(InputError, match=r"does not match its recorded digest(.|\n)*model\.onnx"):
        open_runner(folder)


def test_a_build_without_a_golden_pair_is_refused(project):
    folder = project / "out"
    (folder / "golden.npz").unlink()
    with pytest.raises(InputError, match=r"golden pair(.|\n)*build again"):
        open_runner(folder)


def test_another_preprocessing_stops_the_program(project):
    folder = project / "out"
    pair = read_golden(folder / "golden.npz")
    write_golden(folder / "golden.npz", GoldenPair(pair.pixels, pair.tensor[::-1] + np.float32(0.5)))
    recorded(folder)
    with pytest.raises(VerdictError, match="preprocesses images in another way") as stopped:
        open_runner(folder)
    assert stopped.value.exit_code == 1


def test_a_folder_that_is_none(tmp_path):
    for folder, words in ((tmp_path / "missing", "not a build folder"), (tmp_path, "no manifest")):
        with pytest.raises(InputError, match=words):
            open_runner(folder)


@needs_cryptography
def test_a_signature_covers_what_is_used(project):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def key(name):
        made = Ed25519PrivateKey.generate()
        private, public = project / f"{name}.pem", project / f"{name}.pub.pem"
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        private.write_bytes(made.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        private.chmod(0o600)
        public.write_bytes(made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        return private, public

    (mine, public), (_, other) = key("mine"), key("other")
    folder = project / "out"
    with pytest.raises(InputError, match="not signed"):
        open_runner(folder, public_key=public)
    assert run(["sign", str(folder), "--key", str(mine)]) == 0
    assert open_runner(folder, public_key=public).name == "ort"
    with pytest.raises(InputError, match="signed with another key"):
        open_runner(folder, public_key=other)
    pair = read_golden(folder / "golden.npz")
    np.savez(folder / "golden.npz", pixels=pair.pixels, tensor=pair.tensor)  # the same pair in other bytes
    recorded(folder)
    assert open_runner(folder).name == "ort", "it is a sound pair"
    with pytest.raises(InputError, match=r"steps\.json"):
        open_runner(folder, public_key=public)
    (folder / "steps.json").unlink()
    with pytest.raises(InputError, match=r"golden\.npz"):
        open_runner(folder, public_key=public)


def test_importing_loads_nothing_heavy():
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "cv2", "tensorrt", "tensorrt_rtx", "PIL"}
    code = (
        f"import sys, edge.runtime.open_build, edge.bench.measure, edge.cli.bench; print(*sorted({heavy!r} & set(sys.modules)))"
    )
    run_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run_.stdout.split() == []
