"""Defaults of --placement, and the floor of an engine whose placement leaves layers in float."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from calib.calibration_table import CalibrationTable, save_table
from calib.placement_record import FrontierPoint, GroupCost, Placement
from edge.pipeline.placement_option import STEM_LAYERS, default_float_layers, default_placement
from edge.pipeline.steps.engine import int8_floor
from engines.targets import TARGETS


def request(folder, precision="int8", floor=None, keep_float=None):
    return SimpleNamespace(out=folder, precision=precision, int8_floor=floor, target=TARGETS["rtx"], keep_float=keep_float)


def placement(float_groups):
    groups = (GroupCost(("a",), 0.06, 10.0, 3.0), GroupCost(("b",), 0.92, 30.0, 0.1))
    return Placement(float_groups, groups, (FrontierPoint(0, 0.98, 20.0), FrontierPoint(1, 0.92, 30.0)), 8, 4, 0.88)


def write(folder, placed):
    save_table(folder / "calibration.json", CalibrationTable("o", "d", 64, "mse", placement=placed))


def test_a_named_size_keeps_everything_in_int8_any_other_network_is_searched():
    assert [default_placement(model) for model in ("ufovit_t", "net.onnx", "a.safetensors")] == ["all", "auto", "auto"]


@pytest.mark.parametrize(
    ("placed", "floor"), [(None, None), (placement(0), None), (placement(1), TARGETS["rtx"].int8_floor - 0.06)]
)
def test_the_floor_follows_what_is_left_in_float_on_purpose(tmp_path, placed, floor):
    write(tmp_path, placed)
    assert int8_floor(request(tmp_path), ()) == pytest.approx(floor)


def test_a_floor_that_was_asked_for_stays_and_other_precisions_have_none(tmp_path):
    write(tmp_path, placement(1))
    assert int8_floor(request(tmp_path, floor=0.97), STEM_LAYERS) == 0.97
    assert int8_floor(request(tmp_path, precision="fp16"), STEM_LAYERS) is None


def products(**widths):
    """A graph of matrix products in float, (1, width) x (width, 8), by node name."""
    nodes, weights, inputs = [], [], []
    for name, width in widths.items():
        tensor = name.replace("/", "_")
        inputs.append(helper.make_tensor_value_info(f"{tensor}_x", onnx.TensorProto.FLOAT, [1, width]))
        weights.append(numpy_helper.from_array(np.ones((width, 8), np.float32), f"{tensor}_w"))
        nodes.append(helper.make_node("MatMul", [f"{tensor}_x", f"{tensor}_w"], [f"{tensor}_y"], name=name))
    outputs = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [1, 8]) for node in nodes]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, weights))


def test_an_engine_of_rtx_keeps_what_takes_fewer_steps_in_float():
    assert default_float_layers(TARGETS["cpu"]) == default_float_layers(TARGETS["orin-nano"]) == STEM_LAYERS
    assert default_float_layers(TARGETS["rtx"]) == (*STEM_LAYERS, "*.lpi.conv*", "*.attn/MatMul_1")


def test_the_stem_that_stays_in_float_by_default_is_not_asked_for_and_what_a_user_names_is(tmp_path):
    """90 of 1,000 multiply-accumulates are in the two layers of the default; a third one is in float against the request."""
    write(tmp_path, None)
    onnx.save(products(**{"stem.0/Conv": 30, "stem.3/Conv": 60, "blocks.0/MatMul": 910}), tmp_path / "model.int8.onnx")
    assert int8_floor(request(tmp_path), STEM_LAYERS) == pytest.approx(TARGETS["rtx"].int8_floor - 0.09)
    assert int8_floor(request(tmp_path, keep_float=STEM_LAYERS), STEM_LAYERS) is None
    assert int8_floor(request(tmp_path), ()) is None
