"""Defaults of --placement, and the floor of an engine whose placement leaves layers in float."""

from types import SimpleNamespace

import pytest

from calib.calibration_table import CalibrationTable, save_table
from calib.placement_record import FrontierPoint, GroupCost, Placement
from edge.pipeline.placement_option import default_placement
from edge.pipeline.steps.engine import int8_floor
from engines.targets import TARGETS


def request(folder, precision="int8", floor=None):
    return SimpleNamespace(out=folder, precision=precision, int8_floor=floor, target=TARGETS["rtx"])


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
    assert int8_floor(request(tmp_path)) == pytest.approx(floor)


def test_a_floor_that_was_asked_for_stays_and_other_precisions_have_none(tmp_path):
    write(tmp_path, placement(1))
    assert int8_floor(request(tmp_path, floor=0.97)) == 0.97
    assert int8_floor(request(tmp_path, precision="fp16")) is None
