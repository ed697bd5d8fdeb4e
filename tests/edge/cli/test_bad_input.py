"""`ufovit` and bad input: the exit code, the sentence, and a folder that stays as it was.

Every refusal is tried twice: beside a finished build, of which no byte and no time stamp may change, and with a folder that
does not exist yet, in which nothing may appear but the lock. Oracles: the documented exit codes, digests of files, PIL as
writer of image files, a real file system of one megabyte.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_project import LABELS, build, command, forget, read, sha256

from calib.calibrators import METHODS
from edge.cli import INTERNAL_ERROR, INTERRUPTED, run
from edge.images.idx import write_idx
from edge.model.sizes import SIZES
from engines.build_spec import PRECISIONS
from engines.select_target import AUTO
from engines.targets import TARGETS

ROOT = Path(__file__).resolve().parents[3]
SUPPORT = ROOT / "tests" / "support"
SECONDS = 120


def snapshot(folder):
    """Every file below a folder with its digest and time."""
    return {str(p.relative_to(folder)): (sha256(p), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(project, capsys):
    """refused(code, *says, **changes): `ufovit build` with changed arguments ends with the code and says all of it."""

    def check(code, *says, **changes):
        before = snapshot(project)
        for folder in (project / "out", project / "fresh"):
            assert run(command(project, **{"out": folder, **changes})) == code, capsys.readouterr().err
            error = capsys.readouterr().err
            assert [text for text in says if text not in error] == [], error
            assert "Traceback" not in error
            after = snapshot(project)
            assert {name: after[name] for name in before} == before, "an earlier build was touched"
            assert after.keys() - before.keys() <= {"fresh/.lock"}

    return check


def test_the_fixture_notices_a_changed_build(refused, project, monkeypatch):
    def destroy(*_):
        (project / "out/drift.json").touch()
        raise RuntimeError

    monkeypatch.setattr("edge.pipeline.build_inputs.judging_images", destroy)
    with pytest.raises(AssertionError, match="an earlier build was touched"):
        refused(INTERNAL_ERROR)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "ufovit_x"}, ["unknown model 'ufovit_x'", *SIZES]),
        ({"precision": "int4"}, ['"int4" for PRECISION', *PRECISIONS]),
        ({"target": "toaster"}, ["unknown target 'toaster'", AUTO, *TARGETS]),
        ({"method": "magic"}, ["magic", *METHODS]),
        ({"method": "percentile:101"}, ["101"]),
        ({"islands": "all"}, ["--islands", "all", "unstable, at-risk"]),
        ({"batch": "few"}, ["invalid batch sizes", "'few'", "MIN,OPT,MAX"]),
        ({"batch": "4,2,8"}, ["min 4, opt 2, max 8", "1 <= min <= opt <= max"]),
        ({"batch": "0,1,1"}, ["min 0", "1 <= min"]),
        ({"max_drop": -1}, ["--max-drop is out of range", "-1", "0 to 100"]),
        ({"max_drop": "nan"}, ["--max-drop is out of range", "nan"]),
        ({"max_drop": "inf"}, ["--max-drop is out of range", "inf"]),
        ({"int8_floor": 1.5}, ["INT8 floor", "1.5", "from 0 to 1"]),
        ({"int8_floor": "nan"}, ["INT8 floor", "nan"]),
        ({"eval_images": 0}, ["--eval-images is out of range", "found: 0"]),
        ({"calib_images": -3}, ["--calib-images is out of range", "-3"]),
        ({"calib_images": 31}, ["too few calibration images", "31", "at least 32", "--calib-images"]),
        ({"image_size": 50}, ["image size does not fit", "50 px", "multiples of 16", "--image-size"]),
        ({"image_size": 0}, ["image size does not fit", "found: 0", "multiples of 16", "--image-size"]),
        ({"image_size": 2048}, ["--image-size is out of range", "16 to 1,024"]),
        ({"image_size": 10**30}, ["not an image size", "--image-size"]),
        ({"seed": -1}, ["--seed", "0"]),
        ({"seed": 2**70}, ["--seed"]),
        ({"random_weights": True}, ["--random-weights and --checkpoint exclude each other", "tiny.safetensors"]),
        ({"precision": "fp16"}, ["cpu does not compute in FP16", "fp32, int8", "ufovit build ufovit_tiny fp32 --target cpu"]),
        ({"no_such_option": True}, ["Unknown option", "--no-such-option"]),
        ({"max_drop": "much"}, ["--max-drop", "number"]),
        ({"image_size": 32.5}, ["not an image size", "--image-size", "HEIGHTxWIDTH"]),
        ({"model": "ufovit_s", "checkpoint": None}, ["no checkpoint of ufovit_s", "--checkpoint FILE", "--random-weights"]),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)  # fmt: skip
def test_arguments_that_make_no_sense(refused, changes, says):
    refused(2, *says, **changes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build"], "MODEL and PRECISION are missing"),
        (["build", "ufovit_t"], "MODEL and PRECISION are missing"),
        (["build", "ufovit_t", "int8", "more"], "unexpected extra argument"),
        (["build", "ufovit_t", "int8", "--out"], "--out"),
        (["bake"], "bake"),
        (["inspect"], "Missing argument"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_usage(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_version_is_that_of_the_project(capsys):
    assert run(["--version"]) == 0
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{capsys.readouterr().out.strip()}"' in project.splitlines()


def test_help_of_every_command_and_of_none(capsys):
    assert run(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("build", "inspect", "doctor"))
    assert run(["build", "--help"]) == 0
    assert "--max-drop" in capsys.readouterr().out
    assert run([]) == 2, "no command is bad usage, as with every command line of this kind"


# --- checkpoints


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def rewrite(path, change):
    """Change tensors and metadata of a safetensors file."""
    import safetensors
    from safetensors.torch import load_file, save_file

    with safetensors.safe_open(path, "pt") as stream:
        metadata = json.loads(stream.metadata()["ufovit"])
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, {"ufovit": json.dumps(metadata)})


def poison(tensors, metadata):
    tensors["head.weight"][0, 0] = float("nan")


def misshape(tensors, metadata):
    tensors["head.weight"] = tensors["head.weight"][:, :-1].clone()


def overlabel(tensors, metadata):
    metadata["labels"].append("fox")


CHECKPOINT_FAULTS = {
    "missing": (Path.unlink, ["checkpoint not found"]),
    "empty": (lambda p: truncate(p, 0), ["checkpoint cannot be read"]),
    "cut in its header": (lambda p: truncate(p, 100), ["checkpoint cannot be read"]),
    "cut in its tensors": (lambda p: truncate(p, p.stat().st_size - 100), ["checkpoint cannot be read"]),
    "a text": (lambda p: p.write_text("no checkpoint\n" * 100), ["checkpoint cannot be read", "safetensors"]),
    "NaN": (lambda p: rewrite(p, poison), ["checkpoint does not fit the model", "not finite: head.weight"]),
    "tensor missing": (lambda p: rewrite(p, lambda t, _: t.pop("head.bias")), ["missing: head.bias"]),
    "tensor unexpected": (lambda p: rewrite(p, lambda t, _: t.update(x=t["head.bias"].clone())), ["unexpected: x"]),
    "tensor mis-shaped": (lambda p: rewrite(p, misshape), ["mis-shaped: head.weight (5, 31) instead of (5, 32)"]),
    "labels": (lambda p: rewrite(p, overlabel), ["labels do not match the classes", "6 labels"]),
    "another model": (lambda p: rewrite(p, lambda _, m: m.update(model="ufovit_t")), ["of another model", "ufovit_t"]),
}


@pytest.mark.parametrize("fault", CHECKPOINT_FAULTS)
def test_checkpoints(refused, project, fault):
    damage, says = CHECKPOINT_FAULTS[fault]
    damage(project / "tiny.safetensors")
    refused(2, *says, "tiny.safetensors")


def test_a_checkpoint_that_is_replaced_during_the_build(project, capsys, monkeypatch):
    """Weights of one file under the digest of another would break the chain from engine to checkpoint."""
    replaced = lambda tensors, _: tensors["head.bias"].add_(1)  # noqa: E731  # one line, one use
    monkeypatch.setattr("edge.pipeline.build.check_inputs", lambda *_: rewrite(project / "tiny.safetensors", replaced))
    assert run(command(project, out=project / "fresh")) == 2
    assert "checkpoint changed during the build" in capsys.readouterr().err
    assert not list((project / "fresh").glob("*.onnx"))


def test_a_folder_is_no_checkpoint(refused, project):
    refused(2, "not a regular file", "found: a folder", checkpoint=project / "test")


class RunsCode:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code ran")


@pytest.mark.parametrize("content", ["code", "cut", "another dict"])
def test_pth_files(refused, project, content):
    import torch

    path, marker = project / "weights.pth", project / "marker"
    torch.save({"code": RunsCode(marker)} if content == "code" else {"model": torch.ones(3)}, path)
    if content == "cut":
        truncate(path, path.stat().st_size // 2)
    says = "no ufovit metadata" if content == "another dict" else "checkpoint cannot be read"
    refused(2, says, "weights.pth", checkpoint=path)
    assert not marker.exists(), "a checkpoint must not run code"


# --- images and labels


def test_own_labels_need_own_images(refused):
    refused(2, "the shipped test images do not have this network's labels", "ant", "--data", data=None)
    refused(2, "calibration needs images", "--calib-data", calib_data=None)


def write_images(folder, count=40, label=None):
    """PNG files, a folder per class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / (label or LABELS[i % len(LABELS)]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("option", ["data", "calib_data"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _folder: None, ["images not found"]),
        (lambda folder: folder.mkdir(), ["no class folders", *LABELS]),
        (lambda folder: (folder / "ant").mkdir(parents=True), ["no images", ".png"]),
        (lambda folder: (write_images(folder) / "bee/1.png").write_bytes(b"none"), ["be decoded", "bee/1.png", "repair"]),
        (lambda folder: truncate(write_images(folder) / "cat/2.png", 200), ["image cannot be decoded", "cat/2.png"]),
        (lambda folder: folder.write_text("a file"), ["images"]),
    ],
    ids=["missing", "empty", "no image", "unreadable", "truncated", "file"],
)  # fmt: skip
def test_image_folders(refused, project, option, make, says):
    make(project / "mine")
    if option == "calib_data" and says[0] == "no class folders":
        says = ["no images"]  # pictures calibrate with and without labels
    refused(2, *says, "mine", **{option: project / "mine"})


def test_other_labels_do_not_judge_and_may_calibrate(refused, project, capsys):
    write_images(project / "mine", label="fox")
    refused(2, "labels do not match the network", "fox", *LABELS, "mine", data=project / "mine")
    assert run(command(project, out=project / "other", calib_data=project / "mine")) == 0, capsys.readouterr().err


def test_idx_labels_beyond_the_classes(refused, project):
    write_idx(project / "mine/images-idx3-ubyte.gz", np.zeros((40, 28, 28), np.uint8))
    write_idx(project / "mine/labels-idx1-ubyte.gz", np.arange(40, dtype=np.uint8) % 8)
    refused(2, "labels do not match the network", "class 7", "0 to 4", "labels-idx1", data=project / "mine")


def test_fewer_than_32_calibration_images(refused, project):
    write_images(project / "mine", 31)
    refused(2, "too few calibration images", "found: 31", "at least 32", calib_data=project / "mine")


def test_a_list_with_a_wrong_line(refused, project):
    write_images(project / "mine")
    (project / "mine.csv").write_text("file,label\nmine/ant/0.png,ant\nmine/bee/1.png,fox\n")
    refused(2, "labels do not match", "mine.csv:3", "fox", data=project / "mine.csv")


def test_cmyk_grey_palette_16_bit_and_rotated_images_are_taken(project, capsys):
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6
    folder = project / "mine"
    for seed, label in enumerate(LABELS[:2]):
        rgb = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))
        (folder / label).mkdir(parents=True)
        rgb.convert("CMYK").save(folder / label / "cmyk.jpg")
        rgb.convert("L").save(folder / label / "grey.png")
        rgb.convert("P").save(folder / label / "palette.gif.png")
        Image.fromarray(np.arange(seed, 600 + seed, dtype=np.uint16).reshape(20, 30) * 100).save(folder / label / "deep.png")
        rgb.save(folder / label / "turned.jpg", exif=turned)
        rgb.convert("RGBA").save(folder / label / "transparent.webp")
    assert run(command(project, data=folder, max_drop=100)) == 0, capsys.readouterr().err
    assert read(project, "drift.json")["images"] == 12
    assert read(project, "drift.json")["not_finite"] == 0


# --- the machine


@pytest.mark.parametrize("out", ["file/out", "file"])
def test_output_folder_that_cannot_be_made(project, capsys, out):
    (project / "file").write_text("in the way")
    before = snapshot(project)
    assert run(command(project, out=project / out)) == 4
    error = capsys.readouterr().err
    assert [t for t in ("output folder cannot be written", "choose another --out") if t not in error] == []
    assert snapshot(project) == before


def test_without_tensorrt_rtx_its_target_names_the_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # an import raises
    refused(4, "TensorRT-RTX is not installed", "pip install 'ufovit-edge[rtx]'", target="rtx")


def test_without_tensorrt_rtx_auto_builds_for_the_cpu_and_says_so(project, capsys, monkeypatch):
    for name in ("tensorrt_rtx", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(command(project, target="auto")) == 0
    output = capsys.readouterr().out
    assert "for target cpu: TensorRT-RTX is not usable here" in output
    assert output.count("unchanged, reused") == 7, "the same build as for --target cpu"


@pytest.mark.parametrize("library", ["torch", "onnx", "onnxruntime", "onnxscript", "jinja2", "matplotlib", "safetensors"])
def test_without_a_library_of_the_extra_build(refused, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    refused(4, f"{library} is not installed", "pip install 'ufovit-edge[build]'", force=True)


def test_without_pillow_image_files_are_refused(refused, project, monkeypatch):
    write_images(project / "mine")
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(4, "pillow is not installed", "pip install 'ufovit-edge[build]'", data=project / "mine")


def test_an_error_inside_the_toolkit_is_a_sentence_and_with_debug_a_traceback(project, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr("edge.pipeline.steps.report.write_report", broken)
    for options, shown in (((), False), (("--debug",), True)):
        forget(project, "report") if "report" in read(project, "steps.json")["steps"] else None
        assert build(project, *options) == INTERNAL_ERROR
        error = capsys.readouterr().err
        assert "internal error: RuntimeError: boom" in error
        assert "--debug" in error
        assert ("Traceback" in error) is shown
    assert "report" not in read(project, "steps.json")["steps"]


DRIVER = textwrap.dedent("""
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with SIGINT ignored
    sys.path[:0] = {roots!r}
    from pathlib import Path
    from calib.files import atomic_path
    from edge.pipeline.steps import calibrate as step
    from edge.model.sizes import SIZES
    from tiny_network import TINY
    SIZES[TINY.name] = TINY
    def calibrate_model(counter, model_path, refined_path, table_path, advance):
        with atomic_path(table_path) as temporary:
            temporary.write_text("half")
            Path(counter.request.out, "reached").touch()
            time.sleep({seconds})
    step.calibrate_model = calibrate_model
    from edge.cli.main import main
    main()
""")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signals_end_a_step_cleanly(project, number):
    forget(project, "calibrate")
    out, reached = project / "out", project / "out/reached"
    before = {p.name: sha256(p) for p in out.iterdir()}
    program = DRIVER.format(roots=[str(SUPPORT), str(ROOT)], seconds=SECONDS)
    with subprocess.Popen([sys.executable, "-c", program, *command(project)], stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert reached.exists(), process.stderr.read()
            process.send_signal(number)
            assert process.wait(SECONDS) == INTERRUPTED
            error = process.stderr.read()
        finally:
            process.kill()
    assert "interrupted: finished steps are kept" in error
    assert "Traceback" not in error
    reached.unlink()
    assert {p.name: sha256(p) for p in out.iterdir()} == before, "the folder is as it was"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system: {getattr(error, 'stderr', None) or error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free_kib", [16, 256])
def test_a_full_disk(project, small_disk, capsys, free_kib):
    size = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(size.f_bavail * size.f_frsize - free_kib * 1024))
    out = small_disk / "out"
    assert run(command(project, out=out)) == 4
    error = capsys.readouterr().err
    assert "disk full" in error or "No space left" in error
    assert "Traceback" not in error
    record = json.loads((out / "steps.json").read_text())["steps"] if (out / "steps.json").exists() else {}
    vouched = {file: digest for entry in record.values() for file, digest in entry["writes"].items()}
    left = {p.name for p in out.iterdir()} - {".lock", "steps.json"}
    assert left == set(vouched), "only what a finished step wrote"
    assert all(sha256(out / file) == digest for file, digest in vouched.items())


# --- the other commands


def test_doctor(capsys, monkeypatch, tmp_path):
    assert run(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "Python" in output
    assert "target auto resolves to" in output
    for name in ("tensorrt_rtx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("engines.torch_tensorrt.backend.ENVIRONMENT", tmp_path / "none")
    assert run(["doctor"]) == 4, "no backend at all"
    output = capsys.readouterr().out
    assert "ort would work after: pip install 'ufovit-edge[build]'" in output
    assert "openvino would work after: pip install 'ufovit-edge[openvino]'" in output
    assert "trt_rtx would work after: pip install 'ufovit-edge[rtx]'" in output
    assert "target auto resolves to cpu" in output


def test_inspect(project, capsys):
    assert run(["inspect", str(project / "out")]) == 0
    assert "ufovit_tiny" in capsys.readouterr().out
    assert run(["inspect", str(project / "out/manifest.json")]) == 0
    assert read(project, "manifest.json")["engine"]["sha256"][:12] in capsys.readouterr().out
    assert run(["inspect", str(project / "out/steps.json")]) == 0
    assert "export, certify, calibrate, quantize, engine, drift, report" in capsys.readouterr().out
    (project / "notes.txt").write_text("hello")
    assert run(["inspect", str(project / "notes.txt")]) == 2
    error = capsys.readouterr().err
    assert [t for t in ("unknown kind of artifact", "notes.txt", "manifest.json", "*.onnx") if t not in error] == []
    assert run(["inspect", str(project / "nothing")]) == 2
    assert "file or folder not found" in capsys.readouterr().err


def test_a_folder_whose_name_looks_like_markup(project, capsys):
    out = project / "out[bold]"
    shutil.copytree(project / "out", out)
    assert run(command(project, out=out)) == 0
    assert str(out / "report.html") in capsys.readouterr().out


def test_the_commands_load_no_heavy_library():
    program = "import sys, edge.cli.main; print({'torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'cv2'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.strip() == "set()"
