"""The OpenVINO runner against ONNX Runtime on FP32 graphs, and against integers, which an INT8 product gives exactly."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.errors import InputError, MissingError
from edge.runtime.ort_runner import OrtRunner

openvino = pytest.importorskip("openvino", reason="pip install 'ufovit-edge[openvino]'")
from edge.runtime.openvino_runner import OpenVinoRunner  # noqa: E402  # after the library is known to be there
from engines.openvino.api import load  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
SIZE, CLASSES = 4, 5
PIXELS = 3 * SIZE * SIZE
FP32_DB = 100.0  # two orders of the same FP32 sums; bfloat16 gives about 45 dB


def sqnr_db(wanted, found):
    noise = np.square(wanted.astype(np.float64) - found).sum()
    with np.errstate(divide="ignore"):
        return 10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise) if noise else np.inf


def save(path, nodes, constants, *, batch="batch", image=(3, SIZE, SIZE), dtype=TensorProto.FLOAT, extra=()):
    """A graph from "images" to "logits"; `extra` are more inputs."""
    ends = [helper.make_tensor_value_info("images", dtype, [batch, *image]), *extra]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", ends, outputs, tensors)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def linear(path, weights, **ends):
    """logits = flattened image @ weights, in float."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    return save(path, nodes, {"weights": weights.astype(np.float32)}, **ends)


def quantized(path, codes, x_scale, w_scale):
    """The same with symmetric Q/DQ on both sides, as a build writes it."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "x_scale", "zero"], ["flat/q"]),
        helper.make_node("DequantizeLinear", ["flat/q", "x_scale", "zero"], ["flat/dq"]),
        helper.make_node("DequantizeLinear", ["codes", "w_scale", "zeros"], ["weights"], axis=1),
        helper.make_node("MatMul", ["flat/dq", "weights"], ["logits"]),
    ]
    constants = {
        "x_scale": np.float32(x_scale), "zero": np.int8(0), "codes": codes.astype(np.int8),
        "w_scale": np.full(codes.shape[1], w_scale, np.float32), "zeros": np.zeros(codes.shape[1], np.int8),
    }  # fmt: skip
    return save(path, nodes, {name: np.asarray(value) for name, value in constants.items()})


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def weights():
    return np.random.default_rng(1).normal(size=(PIXELS, CLASSES))


@pytest.fixture
def runner(tmp_path, weights):
    with OpenVinoRunner(linear(tmp_path / "linear.onnx", weights), 1) as made:
        yield made


# What it computes --------------------------------------------------------------------------------------------------------


def test_a_linear_graph_is_the_product(runner, weights):
    x = images(7)
    wanted = x.reshape(7, -1).astype(np.float64) @ weights
    found = runner(x)[0]
    assert (found.shape, found.dtype) == ((7, CLASSES), np.float32)
    assert sqnr_db(wanted, found) > FP32_DB
    for damaged in (2 * wanted, -wanted, wanted[::-1], 0 * wanted, wanted + 1e-3):
        assert sqnr_db(damaged, found) < FP32_DB, "control"
    assert runner.image_shape == (3, SIZE, SIZE)


def test_fp32_stays_fp32(tmp_path):
    """1 + 2^-12 is not a bfloat16 number: in bfloat16 the sum below is 0."""
    weights = np.zeros((PIXELS, CLASSES))
    weights[0], weights[1] = 1, -1
    x = np.zeros((1, 3, SIZE, SIZE), np.float32)
    x[0, 0, 0, :2] = 1 + 2.0**-12, 1
    path = linear(tmp_path / "fine.onnx", weights)
    with OpenVinoRunner(path, 1) as runner:
        assert runner.precision == "f32"
        np.testing.assert_array_equal(runner(x)[0], np.full((1, CLASSES), 2.0**-12, np.float32))


@pytest.mark.slow
def test_without_being_told_it_takes_bfloat16_where_the_cpu_has_it(built):
    """The control of the test above, on a network: this is what the hint is for."""
    core = load().Core()
    compiled = core.compile_model(core.read_model(built / "out/model.onnx"), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    if compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32":
        pytest.skip("this CPU has no bfloat16 arithmetic")
    x = np.random.default_rng(5).normal(size=(8, 3, 32, 32)).astype(np.float32)
    lowered = compiled(x)[0]
    assert sqnr_db(OrtRunner(built / "out/model.onnx")(x)[0], lowered) < 60


def test_a_network_in_fp32_is_ort_s(built):
    x = np.random.default_rng(5).normal(size=(8, 3, 32, 32)).astype(np.float32)
    path = built / "out/model.onnx"
    wanted = OrtRunner(path)(x)[0]
    with OpenVinoRunner(path, 1) as runner:
        assert sqnr_db(wanted, runner(x)[0]) > FP32_DB
        assert sqnr_db(wanted, runner(-x)[0]) < 40, "control: another image"


def test_an_int8_product_is_that_of_the_integers(tmp_path):
    rng = np.random.default_rng(3)
    codes, x_scale, w_scale = rng.integers(-127, 128, (PIXELS, CLASSES)), 2.0**-5, 2.0**-7
    x_codes = rng.integers(-127, 128, (6, PIXELS))
    x = (x_codes * x_scale).astype(np.float32).reshape(6, 3, SIZE, SIZE)
    wanted = ((x_codes @ codes) * (x_scale * w_scale)).astype(np.float32)
    with OpenVinoRunner(quantized(tmp_path / "q.onnx", codes, x_scale, w_scale), 1) as runner:
        np.testing.assert_allclose(runner(x)[0], wanted, rtol=1e-6)
        saturated = np.clip(np.rint(np.float32(9) / x_scale), -128, 127) * x_scale
        loud = runner(np.full_like(x, 9.0))[0]
        np.testing.assert_allclose(loud, runner(np.full_like(x, saturated))[0], rtol=1e-6)
        np.testing.assert_allclose(runner(x + np.float32(0.4 * x_scale))[0], wanted, rtol=1e-6)  # rounded to the same codes
        assert np.abs(runner(x + np.float32(x_scale))[0] - wanted).max() > 1e-3, "control: other codes"


def test_an_int8_network_is_as_near_to_float_as_ort_s(built):
    """Each runtime rounds in its own way; what it loses against the float graph is alike."""
    x = np.random.default_rng(6).normal(size=(32, 3, 32, 32)).astype(np.float32)
    wanted = OrtRunner(built / "out/model.onnx")(x)[0]
    path = built / "out/model.int8.onnx"
    with OpenVinoRunner(path, 1) as runner:
        ours, theirs = (sqnr_db(wanted, made(x)[0]) for made in (runner, OrtRunner(path)))
    assert ours == pytest.approx(theirs, abs=3)
    assert ours < 60, "control: it is quantized at all"


def test_bytes_instead_of_the_file(tmp_path, weights):
    data = linear(tmp_path / "linear.onnx", weights).read_bytes()
    with OpenVinoRunner(Path("named.onnx"), data=data) as runner:
        assert sqnr_db(images(3).reshape(3, -1) @ weights, runner(images(3))[0]) > FP32_DB
    with pytest.raises(InputError, match=r"named\.onnx"):
        OpenVinoRunner(Path("named.onnx"), data=data[:100])


# Whose answers, which threads --------------------------------------------------------------------------------------------


def test_an_answer_is_the_callers_own(runner):
    first = runner(images(3, 1))[0]
    kept = first.copy()
    runner(images(3, 2))
    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable


def test_images_are_left_alone_and_need_not_lie_in_order(runner):
    x = images(6, 4)
    before = x.copy()
    backwards = runner(x[::-1])[0]
    np.testing.assert_array_equal(backwards, runner(x)[0][::-1])
    np.testing.assert_array_equal(x, before)


def test_batches_of_any_size_in_any_order(runner):
    x = images(40)
    wanted = runner(x)[0]
    for start, stop in ((0, 1), (1, 9), (9, 10), (10, 40)):
        np.testing.assert_allclose(runner(x[start:stop])[0], wanted[start:stop], rtol=1e-4, atol=1e-5)


def test_many_threads_share_a_runner(runner):
    wanted = [runner(images(1 + seed % 5, seed))[0] for seed in range(16)]

    def work(seed):
        return all((runner(images(1 + seed % 5, seed))[0] == wanted[seed]).all() for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


def test_the_number_of_threads_is_as_asked(tmp_path, weights):
    path = linear(tmp_path / "linear.onnx", weights)
    with OpenVinoRunner(path, 1) as runner:
        assert runner._compiled[1].get_property("INFERENCE_NUM_THREADS") == 1
    with pytest.raises(InputError, match="--threads is out of range"):
        OpenVinoRunner(path, -1)


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[1.0]], "not an array"),
        (np.zeros((1, 3, SIZE, SIZE)), "not float32"),
        (np.zeros((1, 3, SIZE, SIZE + 1), np.float32), "do not have the shape of the network's input"),
        (np.zeros((3, SIZE, SIZE), np.float32), "do not have the shape of the network's input"),
        (np.zeros((0, 3, SIZE, SIZE), np.float32), "do not have the shape of the network's input"),
    ],
)
def test_other_images_are_refused(runner, given, words):
    with pytest.raises(InputError, match=words):
        runner(given)
    assert len(runner(images(1))[0]) == 1, "it goes on"


def test_a_closed_runner_says_so(runner):
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="closed"):
        runner(images(1))


def test_a_fixed_batch_is_kept(tmp_path, weights):
    with (
        OpenVinoRunner(linear(tmp_path / "two.onnx", weights, batch=2), 1) as runner,
        OpenVinoRunner(linear(tmp_path / "free.onnx", weights), 1) as free,
    ):
        np.testing.assert_allclose(runner(images(3))[0], free(images(3))[0], rtol=1e-4, atol=1e-5)


def test_files_that_are_no_such_graph(tmp_path, weights):
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    dynamic = linear(tmp_path / "dynamic.onnx", weights, image=(3, "height", SIZE))
    double = save(
        tmp_path / "double.onnx",
        [helper.make_node("Add", ["images", "more"], ["logits"])], {},
        extra=[helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    whole = save(
        tmp_path / "whole.onnx",
        [helper.make_node("Cast", ["images"], ["logits"], to=TensorProto.FLOAT)], {}, dtype=TensorProto.DOUBLE,
    )  # fmt: skip
    for path, words in (
        (tmp_path / "missing.onnx", "cannot be read"),
        (tmp_path, "cannot be read"),
        (text, "cannot load"),
        (empty, "cannot load"),
        (dynamic, "not a batch of images"),
        (double, "must have one input"),
        (whole, "not a batch of images"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            OpenVinoRunner(path, 1)
        assert str(path) in str(refused.value)
        assert "Exception from" not in str(refused.value), "OpenVINO's own source is nobody's business"


def test_without_openvino_the_command_that_mends_it(tmp_path, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError, match=r"openvino is not installed\n  next: pip install 'ufovit-edge\[openvino\]'"):
        OpenVinoRunner(linear(tmp_path / "linear.onnx", weights))


# Telemetry ---------------------------------------------------------------------------------------------------------------


def imports_telemetry(tmp_path, code):
    """Whether a fresh interpreter that runs `code` imports the package of the telemetry, of which a spy takes the place."""
    spy = tmp_path / "openvino_telemetry"
    spy.mkdir()
    (spy / "__init__.py").write_text("print('SENDS')\nraise ImportError('spy')\n")
    script = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nsys.path.insert(1, {str(ROOT)!r})\n" + textwrap.dedent(code)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "DONE" in run.stdout
    return "SENDS" in run.stdout


def test_nothing_is_sent(tmp_path):
    code = "from engines.openvino.api import load\nload().Core()\nprint('DONE')"
    assert not imports_telemetry(tmp_path, code)


def test_it_would_be_sent(tmp_path):
    assert imports_telemetry(tmp_path, "import openvino\nprint('DONE')"), "control"


def test_importing_the_module_loads_nothing():
    heavy = {"openvino", "onnx", "onnxruntime", "torch"}
    code = f"import sys, edge.runtime.openvino_runner; print(*sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []
