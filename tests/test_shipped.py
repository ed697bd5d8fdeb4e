"""What is shipped, and the first command on it: images, checkpoint, and an INT8 TensorRT-RTX build end to end.

Oracles: digests of the images' pixels taken once from the distribution's package, onnx's checker, ONNX Runtime, the kernel's
count of a process's memory.
"""

import hashlib
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from shipped_build import CALIBRATION, EVALUATION, arguments, make_shipped_build

from calib.errors import InputError
from edge.assets import ASSETS, CALIBRATION_IMAGES, SHIPPED_CHECKPOINT, SHIPPED_MODEL, TEST_IMAGES
from edge.cli import run
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.images.idx import read_idx
from edge.images.labelled_images import open_images
from edge.model.metadata import read_info
from engines.build_folder.folder import BuildFolder
from engines.build_folder.verify import verify_folder

MEGABYTES = 25
PIXELS_SHA256 = {
    "test-images-idx3-ubyte.gz": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "test-labels-idx1-ubyte.gz": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    "calibration-images-idx3-ubyte.gz": "e979047cd2c1bea6116530241bdbb3d0cab064f1d7b11bccc9c0072b45d14831",
    "calibration-labels-idx1-ubyte.gz": "0b9806b49da32dc853a8bc57409c54d491fbd7c23684df1fce7eeea6c6e8d7f2",
}
PACKAGE = Path("/usr/share/datasets/fashion-mnist")
STEPS = ("export", "certify", "fp16", "calibrate", "quantize", "type", "engine", "speed", "drift", "report")


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def pixels(path):
    return {image.tobytes() for image in read_idx(path)}


@pytest.mark.parametrize("file", PIXELS_SHA256)
def test_images_are_those_of_the_model_card(file):
    assert digest(read_idx(ASSETS / file)) == PIXELS_SHA256[file]


def test_images_are_those_of_the_distribution():
    if not PACKAGE.is_dir():
        pytest.skip(f"no {PACKAGE}: apt-get install dataset-fashion-mnist")
    for ours, theirs in (("test", "t10k"), ("calibration", "train")):
        for kind in ("images-idx3", "labels-idx1"):
            shipped, whole = (read_idx(p) for p in (ASSETS / f"{ours}-{kind}-ubyte.gz", PACKAGE / f"{theirs}-{kind}-ubyte.gz"))
            assert np.array_equal(shipped, whole[-len(shipped) :]), "the whole test split; the last training images"


def test_splits_are_complete_balanced_and_disjoint():
    info = read_info(SHIPPED_CHECKPOINT)
    test, calibration = (open_images(path, info.labels) for path in (TEST_IMAGES, CALIBRATION_IMAGES))
    assert (len(test), len(calibration)) == (10_000, 1_024)
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    assert np.bincount(calibration.labels, minlength=10).min() >= 50
    assert not pixels(TEST_IMAGES) & pixels(CALIBRATION_IMAGES)
    assert len(pixels(TEST_IMAGES)) > 9_900, "the comparison sees different images as different"


def test_shipped_files_are_small():
    sizes = {p.name: p.stat().st_size / 1e6 for p in ASSETS.iterdir() if p.is_file()}
    assert {name: size for name, size in sizes.items() if size > MEGABYTES} == {}


def test_checkpoint_says_what_it_is():
    import safetensors

    info = read_info(SHIPPED_CHECKPOINT)
    assert (info.config.name, info.config.classes, info.random_weights) == (SHIPPED_MODEL, 10, False)
    assert info.config.image_size >= 112
    assert info.config.image_size == info.preprocess.image_size
    assert len(set(info.labels)) == 10
    assert info.training, "how it was trained"
    with safetensors.safe_open(SHIPPED_CHECKPOINT, "numpy") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
    assert {t.dtype.name for t in tensors.values()} == {"float16"}
    assert all(np.isfinite(t).all() for t in tensors.values())


@pytest.fixture(scope="module")
def shipped_build(tmp_path_factory):
    """`ufovit build ufovit_t int8 --target rtx` on some of the shipped images."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed", exc_type=ImportError)
    return make_shipped_build(tmp_path_factory)


@pytest.mark.slow
def test_engine_receipt_and_drift(shipped_build):
    build = BuildFolder(shipped_build)
    manifest, drift = build.manifest, build.read(DRIFT_ARTIFACT)
    assert manifest.engine.file == "engine.engine"
    assert manifest.engine.backend == "trt_rtx"
    assert manifest.receipt.int8_mac_fraction >= 0.95
    assert manifest.checkpoint.sha256 == hashlib.sha256(SHIPPED_CHECKPOINT.read_bytes()).hexdigest()
    assert manifest.calibration.images == CALIBRATION
    assert (drift.images, drift.verdict, drift.judged_by) == (EVALUATION, "pass", "accuracy")
    assert drift.comparison.top1_reference >= 0.92
    assert drift.comparison.agreement >= 0.97
    assert "not the engine" in drift.engine.ran_on, "where the engine cannot run, that is said"


@pytest.mark.slow
def test_the_three_graphs_are_valid_onnx(shipped_build):
    import onnx

    from calib.lint import lint_graph

    for file in ("model.onnx", "model.int8.onnx", "model.typed.onnx"):
        model = onnx.load(shipped_build / file)
        onnx.checker.check_model(model, full_check=True)
        assert {o.domain: o.version for o in model.opset_import}[""] == 20
        rules = {f.rule for f in lint_graph(model) if f.severity != "note"}
        assert rules == ({"float-graph"} if file == "model.onnx" else set())


@pytest.mark.slow
def test_the_quantized_graph_runs_in_onnxruntime_and_still_sees(shipped_build):
    import onnxruntime

    info = read_info(SHIPPED_CHECKPOINT)
    images = open_images(TEST_IMAGES, info.labels).take(300)
    (batch,) = images.batches(info.preprocess, 300)
    session = onnxruntime.InferenceSession(shipped_build / "model.int8.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": batch})
    assert (logits.argmax(1) == images.labels).mean() >= 0.9
    (blank,) = session.run(None, {"image": np.zeros_like(batch[:1])})
    assert (blank.argmax(1) == images.labels).mean() < 0.3, "the answers come from the images"


@pytest.mark.slow
def test_the_folder_verifies_and_a_flipped_bit_does_not(shipped_build, tmp_path):
    build = BuildFolder(shipped_build)
    verify_folder(build)
    assert build.manifest.model == SHIPPED_MODEL
    copy = tmp_path / "copy"
    shutil.copytree(shipped_build, copy)
    engine = copy / "engine.engine"
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    with pytest.raises(InputError, match="does not match its recorded digest"):
        verify_folder(BuildFolder(copy))


@pytest.mark.slow
def test_a_second_run_does_nothing(shipped_build, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in shipped_build.iterdir()}
    assert run(arguments(shipped_build)) == 0
    output = capsys.readouterr().out
    assert [step for step in STEPS if f"  {step}: unchanged, reused" not in output] == []
    assert "done in" not in output
    assert {p.name: p.stat().st_mtime_ns for p in shipped_build.iterdir()} == before


MEASURE = textwrap.dedent("""
    import sys
    from pathlib import Path
    import onnx
    from calib.collect import collect_table
    from calib.histogram import Histogram
    from calib.qdq_placement import plan_quantization
    from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT
    from edge.images.labelled_images import open_images
    from edge.model.metadata import read_info
    graph, count, keep = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "keep"
    kept, update = [], Histogram.update
    if keep:
        Histogram.update = lambda self, values: (kept.append(values.copy()), update(self, values))[1]
    info = read_info(SHIPPED_CHECKPOINT)
    batches = open_images(CALIBRATION_IMAGES, info.labels).take(count).batches(info.preprocess, 32)
    table = collect_table(graph, batches, plan_quantization(onnx.load(graph)), data_sha256="0" * 64)
    assert table.images == count
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
""")
"""Prints the peak of resident memory in KiB. Not `getrusage`: its peak survives exec, so that it would be the test's own."""


def peak_memory(graph, images, keep="stream"):
    command = [sys.executable, "-c", MEASURE, str(graph), str(images), keep]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ASSETS.parents[1]).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_of_calibration_does_not_grow_with_the_images(shipped_build):
    graph = shipped_build / "model.onnx"
    few = peak_memory(graph, 64)
    assert peak_memory(graph, 128) <= 1.1 * few
    assert peak_memory(graph, 64, "keep") > 1.1 * few, "a collector that keeps what it sees is noticed"


@pytest.fixture(scope="module")
def bench():
    """scripts/bench/xnorm.py, which prints the table of planted faults."""
    from scripts.bench import xnorm

    return xnorm


LOSING = (
    "W_K x 2^8",
    "tokens near zero: W_Q x 2^-14",
    "one head dead, eps 1e-12",
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", LOSING)
def test_a_planted_fault_ruins_fp16_and_its_repair_does_not(shipped_build, bench, fault):
    """Emulated FP16 on 20 test images: the answers are lost without the repair, and all the same with it."""
    import onnx

    from edge.stability.certify import certify_graph

    model = bench.planted(onnx.load(shipped_build / "model.onnx"), bench.FAULTS[fault])
    images, _ = bench.test_images(bench.TRAINED_AT, 20)
    reference = bench.run(model, images)
    done = certify_graph(model, bench.calibration_batches(bench.TRAINED_AT, 8), data_sha256="")
    assert (done.certificate.verdict_before, done.certificate.verdict) == ("unstable", "stable")
    assert done.certificate.islands.sites == 0
    assert np.array_equal(bench.run(done.model, images).view(np.uint32), reference.view(np.uint32))
    ruined = bench.compare_logits(reference, bench.run(bench.fp16_graph(model), images))
    repaired = bench.compare_logits(
        reference, bench.run(bench.fp16_graph(done.model, bench.kept_nodes(done.model, done.certificate)), images)
    )
    assert ruined.agreement < 0.9
    assert (repaired.agreement, repaired.not_finite) == (1.0, 0)
    assert repaired.sqnr_db > 55


@pytest.mark.slow
def test_the_shipped_network_is_certified_for_every_input(shipped_build):
    from edge.stability.certificate import read_certificate

    found = read_certificate(shipped_build / "xnorm.json")
    assert (len(found.sites), found.verdict, found.islands.sites) == (52, "stable", 0)
    assert all(site.verdicts["fp16"].rests_on == "certified" for site in found.sites)
    assert max(site.errors["fp16/fp32"] for site in found.sites) < 1e-3
    assert found.verdict_before == "unstable", "before the repair sums of squares overflow on real images"
