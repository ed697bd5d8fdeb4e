"""The benchmark that compares certificates with torch in half precision: its oracle, and what its table counts as an alarm.

Oracles: ONNX Runtime for every operator in FP32, numpy's float16 for half precision.
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_text import run_text_model, text_model
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts/bench"
sys.path += [str(SCRIPTS), str(SCRIPTS / "strangers")]

from certify_strangers import certify_one, compare_half  # noqa: E402
from certify_strangers_table import is_false_alarm, is_missed, write_table  # noqa: E402
from torch_network import TorchNetwork  # noqa: E402
from torch_operators import OPERATORS  # noqa: E402

from calib.files import write_json  # noqa: E402
from calib.json_reader import read_json  # noqa: E402

MAP, ROWS = (2, 4, 7, 6), (2, 5, 8)
BODIES = {
    "y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2], group=2>(x, kernel, bias)": MAP,
    'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, full)': MAP,
    "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, full)": MAP,
    "y = MaxPool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,0]>(x)": MAP,
    "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)": MAP,
    "y = GlobalAveragePool(x)": MAP,
    "y = BatchNormalization(x, four, four, four, positive)": MAP,
    "y = InstanceNormalization(x, four, four)": MAP,
    'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , scales)': MAP,
    'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , scales)': MAP,
    'y = Pad<mode="reflect">(x, pads)': MAP,
    "y = Pad(x, negative, half)": MAP,
    "a = Flatten(x) y = Gemm<transB=1>(a, wide, row)": MAP,
    "y = LayerNormalization<axis=-1>(x, eight, eight)": ROWS,
    "y = Softmax<axis=1>(x)": ROWS,
    "y = ReduceL2<keepdims=1>(x, last)": ROWS,
    "y = ReduceMean<keepdims=0>(x, both)": ROWS,
    "y = ReduceSum<keepdims=0>(x)": ROWS,
    "a, b, c = Split<axis=2>(x, lengths) y = Concat<axis=-1>(c, a, b)": ROWS,
    "a, b = Split<axis=2, num_outputs=2>(x) y = Sub(a, b)": ROWS,
    "y = Slice(x, starts, ends, axes, steps)": ROWS,
    "y = Gather<axis=1>(x, places)": ROWS,
    "a = Transpose<perm=[2,0,1]>(x) y = GatherND(a, pairs)": ROWS,
    "a = Unsqueeze(x, edges) b = Transpose(a) y = Squeeze(b, first)": ROWS,
    "y = Reshape(x, sizes)": ROWS,
    "a = Shape<start=1>(x) b = ConstantOfShape(a) c = Cast<to=9>(b) d = Not(c) y = Where(d, x, half)": ROWS,
    "a = Clip(x, half, ) b = Pow(a, two) c = Exp(b) d = Reciprocal(c) e = Div(d, c) f = Sqrt(e) y = Erf(f)": ROWS,
    "a = HardSwish(x) b = HardSigmoid(a) c = Sigmoid(b) d = Tanh(c) e = Relu(d) f = Neg(e) y = Abs(f)": ROWS,
    'a = Gelu(x) b = Gelu<approximate="tanh">(a) c = Sin(b) d = Cos(c) e = Max(d, half) f = Min(e, two) y = LeakyRelu(f)': ROWS,
    "y = CumSum(x, two_axis)": ROWS,
    "y = Tile(x, sizes)": ROWS,
}  # fmt: skip
CONSTANTS = {
    "kernel": (6, 2, 3, 2), "full": (4, 4, 3, 3), "bias": (6,), "four": (4,), "wide": (3, 168), "row": (3,), "eight": (8,),
}  # fmt: skip


def constants():
    """Weights from a seed of their own, and whole numbers."""
    rng = np.random.default_rng(3)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in CONSTANTS.items()}
    whole = {
        "pads": [0, 0, 1, 2, 0, 0, 1, 0], "negative": [0, 0, 1, -1, 0, 0, -2, 1], "last": [-1], "both": [0, 2],
        "lengths": [3, 1, 4], "starts": [6, 0], "ends": [-9, 3], "axes": [2, 1], "steps": [-2, 2], "places": [[0, -1], [2, 2]],
        "pairs": [[0, 1], [7, 0]], "edges": [0, -1], "first": [0], "sizes": [0, 4, 10], "two_axis": 1,
    }  # fmt: skip
    floats = {"positive": rng.uniform(1, 2, 4), "scales": [1, 1, 2, 2], "half": 0.5, "two": 2.0}
    return (
        weights
        | {name: np.array(value, np.int64) for name, value in whole.items()}
        | {name: np.array(value, np.float32) for name, value in floats.items()}
    )


FACTS = {
    "exporter": "ts", "versions": {}, "size": [16, 16], "free": ["batch"], "mean": [0.5] * 3, "std": [0.5] * 3,
}  # fmt: skip


def arguments(folder, exponent):
    (folder / "results").mkdir(exist_ok=True)
    return Namespace(results=folder / "results", images=4, half_images=2, exponent=exponent)


def in_torch(model, x, dtype=torch.float32):
    with torch.inference_mode():
        (output,) = TorchNetwork(model, dtype)(torch.from_numpy(x)).values()
    return output.numpy()


@pytest.mark.parametrize("body", BODIES)
def test_operators_are_onnxs(body):
    shape = BODIES[body]
    given = constants() | ({"sizes": np.array([2, 1, 3])} if "Tile" in body else {})
    model = text_model(body, shape, **given)
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    expected, found = run_text_model(model, x, "onnxruntime"), in_torch(model, x)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_result_is_rounded_to_half():
    model = text_model("a = Mul(x, c) b = Add(a, c) y = Sqrt(b)", c=np.float32(3.1))
    x = np.random.default_rng(5).uniform(0, 300, ROWS).astype(np.float32)
    c = np.float16(3.1)
    assert np.array_equal(in_torch(model, x, torch.float16), np.sqrt(x.astype(np.float16) * c + c).astype(np.float32))


def network(scale):
    return text_model("a = Mul(x, scale) b = Mul(a, a) c = ReduceMean<keepdims=1>(b, last) d = Sqrt(c) y = Div(a, d)",
                      scale=np.float32(scale), last=np.array([-1]))  # fmt: skip


@pytest.mark.parametrize(("scale", "lost"), [(1.0, False), (2000.0, True)])
def test_half_precision_loses_what_overflows(scale, lost):
    x = np.random.default_rng(5).standard_normal((3, 5, 8)).astype(np.float32)
    found = compare_half(network(scale), x)
    assert found["single_db"] > 100
    assert (found["sqnr_db"] is None or found["sqnr_db"] < 20) == lost


def test_an_oracle_of_another_network_is_refused(monkeypatch):
    x = np.random.default_rng(5).standard_normal((1, 5, 8)).astype(np.float32)
    monkeypatch.setitem(OPERATORS, "Sqrt", lambda values: values.sqrt() * 1.01)
    assert "another network" in compare_half(network(1.0), x)["refusal"]
    monkeypatch.delitem(OPERATORS, "Sqrt")
    assert compare_half(network(1.0), x) == {"refusal": "no Sqrt in torch_operators"}


def row(verdict, half_db, not_finite=0):
    run = {
        "verdict": verdict,
        "worst": "",
        "proven": [1, 2, 4],
        "sqnr_db": 50.0,
        "not_finite": 0,
        "refusal": "",
        "repaired": None,
    }
    half = {"images": 4, "not_finite": not_finite, "sqnr_db": half_db}
    return {"name": "net", "none": {**run, "verdict": "at risk"}, "rtx": run, "half": half, "seconds": 3.0}


@pytest.mark.parametrize(
    ("found", "alarm", "missed"),
    [
        (row("stable", 50.0), False, False),
        (row("unstable", 50.0), True, False),
        (row("unstable", 12.0), False, False),
        (row("stable", 12.0), False, True),
        (row("stable", None, 4), False, True),
        (row("at risk", None, 4), False, False),
        (row("unstable", 50.0, 1), False, False),
    ],
)
def test_the_table_counts_alarms(found, alarm, missed):
    assert (is_false_alarm(found, "rtx"), is_missed(found, "rtx")) == (alarm, missed)
    text = write_table([found, {"name": "slow", "error": "time limit", "seconds": 9.0}], 16, 4)
    assert f"False alarms: {'net (rtx)' if alarm else 'none'}. Missed: {'net (rtx)' if missed else 'none'}." in text
    assert "slow: time limit" in text
    assert "→" not in text
    assert f"{found['rtx']['verdict']} → stable, 61.2 dB" in write_table([repaired(found)], 16, 4)


def test_without_a_target_the_emulation_may_have_lost_what_torch_has_not():
    found = row("stable", 50.0)
    for lost, alarm in (({}, True), ({"sqnr_db": 12.0}, False), ({"sqnr_db": None, "not_finite": 4}, False)):
        found["none"] = {**found["none"], "verdict": "unstable", **lost}
        assert is_false_alarm(found, "none") == alarm
        assert f"statistics in FP16 does: {'none' if alarm else 'net (none)'}." in write_table([found], 16, 4)


def repaired(found):
    return {**found, "rtx": {**found["rtx"], "repaired": {"verdict": "stable", "sqnr_db": 61.2}}}


@pytest.mark.slow
def test_a_network_of_its_own_from_file_to_result(tmp_path):
    """A network that FP16 destroys is called unstable, and torch destroys it too; unscaled neither."""
    model = text_model("a = Conv(x, w) b = GlobalAveragePool(a) y = Flatten(b)", (1, 3, 16, 16),
                       w=np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32))  # fmt: skip
    onnx.save(model, tmp_path / "net.onnx")
    write_json(tmp_path / "net.json", FACTS)
    (tmp_path / "photos").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    for exponent, destroyed in ((0, False), (16, True)):
        certify_one(tmp_path / "net.onnx", tmp_path / "photos", arguments(tmp_path, exponent))
        suffix = f", weights x 2^{exponent}" if exponent else ""
        found = read_json(tmp_path / f"results/net{suffix}.json")
        assert (found["half"]["not_finite"] > 0) == destroyed
        assert {found[target]["verdict"] == "unstable" for target in ("none", "rtx")} == {destroyed}
