"""The scripts that plant faults in builds and that rebuild honestly, in small: the tiny network, target cpu."""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_network import TINY

from calib.calibration_table import load_table
from edge.model.sizes import SIZES
from edge.pipeline.build_request import BuildRequest
from engines.build_folder.file_names import CALIBRATION, QUANTIZED, TYPED
from engines.build_folder.folder import BuildFolder
from engines.build_folder.verify import verify_folder
from engines.targets import TARGETS
from engines.typed_graph import type_graph

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "bench"))

import honest_rebuilds
import planted_faults
from planted_regressions import FAULTS, Found, find, prepare, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def request_of(built):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, TINY.name, TINY)
        yield lambda out: BuildRequest(
            TINY.name, "int8", TARGETS["cpu"], out, checkpoint=built / "tiny.safetensors", data=built / "test",
            calib_data=built / "calibration", max_drop_points=20, int8_floor=0.5,
        )  # fmt: skip


@pytest.fixture(scope="module")
def bench(request_of, built, tmp_path_factory):
    """On the build that other tests have too: copied, so that nothing is built twice."""
    out = tmp_path_factory.mktemp("planted")
    shutil.copytree(built / "out", out / "honest")
    return prepare(request_of(out / "honest"), out)


CAUGHT = [
    "nothing", "scale x 2, costly", "zeroed channel", "other mean in the manifest", "BGR for RGB", "labels shifted",
    "8 calibration images", "4 calibration images, 8 times each", "last week's weights",
]  # fmt: skip


@pytest.mark.parametrize("name", CAUGHT)
def test_a_fault_comes_out_as_the_table_expects(bench, name):
    found = find(FAULTS[name], bench, name)
    assert found.missed(FAULTS[name]) == ""


def test_a_planted_build_is_whole_and_the_honest_one_untouched(bench):
    before = verify_folder(BuildFolder(bench.honest))
    planted = planted_faults.larger_scale(bench, "twice", 2, "stem.8/Gelu_output")
    assert verify_folder(BuildFolder(bench.honest)) == before
    verify_folder(BuildFolder(planted.folder))
    was, now = (load_table(folder / CALIBRATION).tensors for folder in (bench.honest, planted.folder))
    assert {name for name in was if was[name] != now[name]} == {"stem.8/Gelu_output"}
    assert now["stem.8/Gelu_output"].amax == 2 * was["stem.8/Gelu_output"].amax


def test_longer_queries_are_planted_in_weights_and_biases_alone(bench, tmp_path):
    """The overflow needs a typed graph, which a CPU build has not: here on a typed copy."""
    honest = type_graph(onnx.load(bench.honest / QUANTIZED))
    path = tmp_path / TYPED
    onnx.save(honest, path)
    planted_faults.edit_graph(path, planted_faults._of_queries, planted_faults._longer_queries)
    values = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (honest, onnx.load(path))]
    changed = {name for name, value in values[0].items() if not np.array_equal(value, values[1][name])}
    layers = ("blocks.0.attn", "blocks.1.attn", "cls_blocks.0.attn", "cls_blocks.1.attn")
    assert changed == {f"{layer}.q{rest}/fp16" for layer in layers for rest in (".bias", "/MatMul.weight_scale")}
    assert all(np.array_equal(values[1][name], values[0][name] * np.float16(4096)) for name in changed)
    with pytest.raises(KeyError, match="no constant is selected"):
        planted_faults.edit_graph(path, lambda _name: False, lambda values: values)


def test_what_comes_out_otherwise_is_said_and_counted(bench, capsys):
    fault = FAULTS["zeroed channel"]
    seen = Found(1, "fail: sqnr (+9 dB lost)", ("zeroed_channel",), "channel 3", 1.0)
    assert seen.missed(fault) == ""
    assert "MISSED" in replace(seen, code=0).missed(fault)
    assert "MISNAMED" in replace(seen, kinds=()).missed(fault)
    assert "MISNAMED" in replace(seen, kinds=("zeroed_channel", "outlier")).missed(fault)
    assert "DIFFERENT" in replace(seen, gate="fail: size").missed(fault)
    nothing = {"nothing": FAULTS["nothing"], "asked too much": replace(FAULTS["nothing"], gates=(1,))}
    assert table(bench, nothing, markdown=True) == 1
    assert "MISSED: gate 0, expected 1" in capsys.readouterr().out


def test_honest_rebuilds_raise_no_alarm_and_go_on_where_they_were(request_of, bench, built, tmp_path, capsys):
    shutil.copytree(built / "out", tmp_path / "honest")
    args = argparse.Namespace(rebuilds=2, calib_images=48, images=60, seed=0, attribute=1, out=tmp_path)

    def go():
        alarm = honest_rebuilds.run(request_of(tmp_path / "honest"), args, built / "calibration")
        lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        return alarm, lines, capsys.readouterr()

    alarm, lines, printed = go()
    assert not alarm
    assert [(line["rebuild"], line["series"]) for line in lines] == [(n, s) for n in (0, 1) for s in honest_rebuilds.SERIES]
    assert {line["verdict"] for line in lines} == {"pass"}
    assert "0 culprits in 1 rebuilds" in printed.out
    assert all({"accuracy", "agreement", "sqnr", "size"} <= line["uses"].keys() for line in lines)
    assert lines[0]["uses"]["sqnr"] != lines[2]["uses"]["sqnr"], "other calibration images"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("rebuild")] == []
    args.rebuilds = 3
    _alarm, more, printed = go()
    assert more[:4] == lines
    assert "2 of 3 rebuilds exist already" in printed.err
    assert len(more) == 6
    lines[0]["verdict"], lines[0]["reason"] = "fail", "planted"
    assert honest_rebuilds.summary(lines), "the control: one alarm among them"
