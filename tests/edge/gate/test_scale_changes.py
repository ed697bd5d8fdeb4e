"""Scales against a baseline: changed scales are named, incomparable ones skipped with a reason, missing ones fail."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from gate_builds import memory_build, read_build
from onnx import TensorProto, helper, numpy_helper

from calib.calibration_table import load_table
from edge.gate import scale_changes
from edge.gate.baseline import Scales
from edge.gate.compare_builds import compare_builds
from edge.gate.scale_changes import read_scales
from edge.gate.update import make_baseline
from engines.build_folder.file_names import CALIBRATION, QUANTIZED
from engines.build_folder.folder import BuildFolder

HONEST = Scales("mse", "a" * 64, {"x": -5.0, "y": -7.0, "z": -6.0}, {"w": -9.0})
SMOOTH = "mse; refined by smooth"
LOGITS = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)


def rows(before, now):
    """The two rows of a comparison in which nothing but the scales differs."""
    builds = [memory_build(LOGITS, LOGITS, LOGITS.argmax(1), scales=scales) for scales in (before, now)]
    report = compare_builds(builds[1], make_baseline(builds[0]), "baseline.json")
    found = {row.quantity: row for row in report.rows}
    return found["scale_largest"], found["scale_mean"], report.verdict


def moved(**bits):
    """HONEST with scales 2^bits times as large."""
    activations = {name: value + bits.get(name, 0.0) for name, value in HONEST.activations.items()}
    return replace(HONEST, activations=activations, weights={"w": HONEST.weights["w"] + bits.get("w", 0.0)})


@pytest.mark.parametrize("bits", [1.0, -1.0])
def test_one_scale_doubled_or_halved_fails_and_is_named(bits):
    largest, _, verdict = rows(HONEST, moved(y=bits))
    assert (largest.result, verdict) == ("fail", "fail")
    assert largest.detail == f"y is {2.0**bits:.2f} times the baseline's, of 4 scales the most"
    assert largest.loss == pytest.approx(1.0)


def test_a_weights_scales_count_too():
    largest, mean, _ = rows(HONEST, moved(w=1.0))
    assert (largest.result, mean.result) == ("fail", "pass")
    assert largest.detail.startswith("w is 2.00 times")


def test_many_scales_a_little_off_fail_on_the_whole_alone():
    """The effect of too few images: every scale is a little off, none far off."""
    largest, mean, verdict = rows(HONEST, moved(x=0.1, y=-0.1, z=0.1))
    assert (largest.result, mean.result, verdict) == ("pass", "fail", "fail")
    assert mean.loss == pytest.approx(0.1)


def test_the_same_scales_pass():
    largest, mean, verdict = rows(HONEST, HONEST)
    assert (largest.result, mean.result, verdict) == ("pass", "pass", "pass")
    assert (largest.loss, mean.loss, largest.detail) == (0, 0, "none of 4 scales has moved")


def test_small_changes_pass():
    largest, mean, verdict = rows(HONEST, moved(x=0.05, y=-0.04, z=0.03))
    assert (largest.result, mean.result, verdict) == ("pass", "pass", "pass")
    assert mean.loss == pytest.approx(0.04)


@pytest.mark.parametrize("bits", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_not_finite_fails(bits):
    assert rows(HONEST, moved(y=bits))[1].result == "fail"


def test_builds_without_scales_are_not_an_error():
    nothing = replace(HONEST, activations={}, weights={})
    assert [row.result for row in rows(nothing, nothing)[:2]] == ["pass", "pass"]


def test_other_folds_move_scales_by_powers_of_two_and_hide_nothing_else():
    folded = replace(moved(x=1.0, w=-3.0), folds_sha256="b" * 64)
    assert rows(HONEST, folded)[2] == "pass"
    assert "whole powers of two are left out" in rows(HONEST, folded)[0].detail
    assert rows(HONEST, replace(folded, folds_sha256=HONEST.folds_sha256))[2] == "fail"
    assert rows(HONEST, replace(moved(x=1.0, z=0.2), folds_sha256="b" * 64))[1].result == "fail"


@pytest.mark.parametrize(("before", "now", "result", "says"), [
    (HONEST, replace(HONEST, made="max"), "skipped", "calibrated differently: mse became max"),
    (replace(HONEST, made=SMOOTH), replace(moved(x=3.0), made=SMOOTH), "skipped", "this effort"),
    (None, HONEST, "skipped", "the baseline has no scales"),
    (HONEST, None, "fail", "the build has no quantized graph"),
    (HONEST, replace(HONEST, activations={"x": -5.0, "y": -7.0}), "fail", "no longer quantized: z"),
    (HONEST, replace(HONEST, weights={}), "fail", "no longer quantized: w"),
])  # fmt: skip
def test_what_cannot_be_compared_says_why(before, now, result, says):
    largest, mean, _ = rows(before, now)
    assert (largest.result, mean.result) == (result, result)
    assert says in largest.detail


def test_without_onnx_the_rows_say_so(monkeypatch):
    monkeypatch.setattr(scale_changes, "find_spec", lambda _name: None)
    largest, mean, verdict = rows(HONEST, None)
    assert (largest.result, mean.result, verdict) == ("skipped", "skipped", "pass")
    assert "pip install 'ufovit-edge[build]'" in largest.detail


def graph(scales, weight_scales):
    """A graph with a Q/DQ pair per tensor name, and one weight with scales by channel, written with ONNX's own helpers."""
    nodes, constants = [], [numpy_helper.from_array(np.zeros((), np.int8), "zero")]
    constants += [numpy_helper.from_array(np.float32(scale), f"{name}_s") for name, scale in scales.items()]
    constants += [
        numpy_helper.from_array(np.ones((len(weight_scales), 2), np.int8), "w"),
        numpy_helper.from_array(np.float32(weight_scales), "w_s"),
        numpy_helper.from_array(np.zeros(len(weight_scales), np.int8), "w_z"),
    ]
    for name in scales:
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_s", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", "zero"], [f"{name}_d"]))
    nodes.append(helper.make_node("DequantizeLinear", ["w", "w_s", "w_z"], ["w_d"], axis=0))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in scales]
    outputs = [helper.make_tensor_value_info("w_d", TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, constants))


def test_scales_are_read_from_the_graph_and_the_typed_one_first(built, tmp_path):
    (tmp_path / CALIBRATION).write_bytes((built / "out" / CALIBRATION).read_bytes())
    assert read_scales(BuildFolder(tmp_path), None) is None
    onnx.save(graph({"x": 0.25, "y": 0.03}, (0.5, 0.125)), tmp_path / QUANTIZED)
    found = read_scales(BuildFolder(tmp_path), None)
    assert found.activations == {"x": -2.0, "y": pytest.approx(np.log2(0.03), abs=5e-4)}
    assert found.weights == {"w": -2.0}  # the geometric mean of 1/2 and 1/8
    assert found.made == load_table(built / "out" / CALIBRATION).method
    onnx.save(graph({"x": 0.5}, (0.5,)), tmp_path / "model.typed.onnx")
    assert read_scales(BuildFolder(tmp_path), None).activations == {"x": -1.0}


def test_a_real_builds_scales_are_its_tables(built):
    scales = read_build(built / "out").measured.scales
    table = load_table(built / "out" / CALIBRATION).tensors
    assert scales.activations == {name: pytest.approx(np.log2(entry.scale), abs=5e-4) for name, entry in table.items()}
    assert len(scales.weights) > 10
