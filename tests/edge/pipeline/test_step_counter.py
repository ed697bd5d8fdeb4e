"""Steps of placements, counted in the engines of TensorRT-RTX. Oracles: the receipt of the engine that is kept, a build of its
own, and a network in which one layer ruins everything in INT8."""

import json
from html import unescape
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from import_graphs import GraphWriter
from onnx import TensorProto
from PIL import Image

from calib.errors import MissingError
from edge.cli import run
from edge.pipeline.step_counter import StepCounter
from engines.backend_protocol import BackendResult
from engines.build import build
from engines.build_spec import BatchRange, BuildSpec
from engines.roofline import SpeedUp
from engines.targets import TARGETS
from engines.trt import api

WILD = 500.0


def planted():
    """(n, 3, 32, 32) -> 4 numbers; of the tensor that `reader` reads, channel 0 is WILD times as large as the others."""
    g, rng = GraphWriter(), np.random.default_rng(4)

    def conv(source, inputs, outputs, side, factor=1.0):
        weights = (rng.normal(size=(outputs, inputs, side, side)) / np.sqrt(inputs * side * side) * factor).astype(np.float32)
        return g.add("Conv", source, g.const(weights), pads=[side // 2] * 4)

    wild = np.ones((1, 8, 1, 1), np.float32)
    wild[0, 0] = WILD
    planes = g.add("Relu", conv("pixels", 3, 8, 3))
    scaled = g.add("Mul", g.add("Relu", conv(planes, 8, 8, 1)), g.const(wild))
    reader = conv(scaled, 8, 8, 1, 1 / wild)
    g.nodes[-1].name = "reader"
    last = g.add("Relu", conv(reader, 8, 24, 3))
    features = g.add("Flatten", g.add("GlobalAveragePool", last))
    return g.model(g.add("MatMul", features, g.random(24, 4)), takes={"pixels": [TensorProto.FLOAT, "n", 3, 32, 32]})


def pictures(folder, count, seed):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return str(folder)


@pytest.mark.slow
def test_the_engine_of_the_choice_is_built_once_and_its_steps_are_in_every_artifact(tmp_path, monkeypatch, capsys):
    try:
        api.load("rtx")
    except MissingError as missing:
        pytest.skip(f"{missing}")
    from engines.trt.rtx_backend import BACKEND

    built = {"int8": [], "fp16": []}

    def counted(spec, graph, advance):
        built[spec.precision].append(graph)
        return BACKEND.build(spec, graph, advance)

    onnx.save(planted(), tmp_path / "net.onnx")
    command = ["build", str(tmp_path / "net.onnx"), "int8", "--task", "tensors", "--target", "rtx", "--min-sqnr", "5"]
    command += ["--data", pictures(tmp_path / "test", 16, 1), "--calib-data", pictures(tmp_path / "calibration", 64, 2)]
    command += ["--out", str(tmp_path / "out"), "--int8-floor", "0", "--batch", "1", "--mean", "0.5", "--std", "0.5"]
    with monkeypatch.context() as patch:
        patch.setattr(
            "edge.pipeline.step_counter.load_backend", lambda _name: SimpleNamespace(**vars(BACKEND) | {"build": counted})
        )
        patch.setattr("engines.build.load_backend", lambda _name: SimpleNamespace(**vars(BACKEND) | {"build": counted}))
        assert run(command) == 0
    said = capsys.readouterr().out
    placement = json.loads((tmp_path / "out/calibration.json").read_text())["placement"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    points = {point["float_groups"]: point["steps"] for point in placement["frontier"]}
    assert placement["groups"][0]["nodes"] == ["reader"]
    assert placement["float_groups"] > 0
    assert points[placement["float_groups"]] == manifest["receipt"]["plan"]["total"]["steps"]
    graphs = built["int8"]
    assert len(built["fp16"]) == 1, "the engine beside it"
    assert len(graphs) == len(set(graphs)) == sum(steps is not None for steps in points.values()) >= 2
    spec = BuildSpec(tmp_path / "out/model.typed.onnx", TARGETS["rtx"], "int8", BatchRange(1, 1, 1), 0.0)
    assert build(spec).receipt.plan.total.steps == points[placement["float_groups"]]
    sentence = f"{points[0]} -> {points[placement['float_groups']]} steps per image"
    assert sentence in " ".join(said.split())
    assert sentence in unescape((tmp_path / "out/report.html").read_text())
    assert run(["inspect", str(tmp_path / "out/calibration.json")]) == 0
    assert sentence in " ".join(capsys.readouterr().out.split())
    speed = json.loads((tmp_path / "out/speed.json").read_text())
    assert speed["int8"]["steps"]["steps"] == manifest["receipt"]["plan"]["total"]["steps"]
    assert f"INT8 is expected to be {SpeedUp(**speed['targets'][0]['batches'][0]).sentence()}" in " ".join(said.split())
    assert run(command) == 0
    again = capsys.readouterr().out
    assert "calibrate: unchanged, reused" in again
    assert "speed: unchanged, reused" in again
    run([*command, "--placement", "all"])
    again = capsys.readouterr().out
    assert "fp16: unchanged, reused" in again, "no placement changes the FP16 engine"
    assert "calibrate: unchanged, reused" not in again


def test_other_targets_count_nothing():
    counter = StepCounter(SimpleNamespace(target=TARGETS["cpu"]), None, pytest.fail)
    assert not counter.counts
    assert counter.reads(None) == {}


def test_the_engine_of_another_graph_is_not_taken_and_each_only_once():
    counter = StepCounter(None, None, pytest.fail)
    result = BackendResult(b"engine", "1")
    digest = "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"  # of aaa, by sha256sum
    counter.built[digest] = result
    assert counter.take(b"aaa") is result
    assert counter.take(b"aaa") is None
    counter.built[digest] = result
    assert counter.take(b"aab") is None
