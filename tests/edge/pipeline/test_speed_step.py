"""The steps `fp16` and `speed` on tiny graphs: the FP16 engine is built beside the INT8 engine, and never fails the build."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from engine_graphs import attention
from onnx import numpy_helper

from calib.errors import MissingError
from edge.pipeline import step_counter
from edge.pipeline.builder_options import DEFAULT_BUILDER
from edge.pipeline.step_counter import StepCounter
from edge.pipeline.steps import speed
from engines.build import build
from engines.build_spec import BatchRange, BuildSpec
from engines.rtx_plan_text import read_steps
from engines.targets import TARGETS
from engines.trt import api
from engines.typed_graph import type_graph

try:
    api.load("rtx")
except MissingError as missing:
    pytest.skip(f"{missing}", allow_module_level=True)

RTX, BATCH = TARGETS["rtx"], BatchRange(1, 1, 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An INT8 engine, its typed graph, and the float graph of the same network; nothing is kept in FP32."""
    monkeypatch.setattr(step_counter, "type_as_certified", lambda model, _folder, _network: type_graph(model))
    onnx.save(type_graph(attention(quantized=True)), tmp_path / "model.typed.onnx")
    onnx.save(attention(), tmp_path / "model.onnx")
    engine = build(BuildSpec(tmp_path / "model.typed.onnx", RTX, "int8", BATCH, 0.0))
    (tmp_path / "engine.engine").write_bytes(engine.data)
    return tmp_path


def estimate(folder):
    request = SimpleNamespace(out=folder, target=RTX, batch=BATCH, engine_file="engine.engine", builder=DEFAULT_BUILDER)
    counter = StepCounter(request, SimpleNamespace(network=None), print)
    speed.build_fp16(counter, "model.onnx", folder, lambda _share: None)
    speed.estimate_speed(request, folder, lambda _share: None)
    return json.loads((folder / "fp16_plan.json").read_text()), json.loads((folder / "speed.json").read_text())


def test_the_fp16_engine_is_built_beside_the_int8_engine(folder):
    """Oracle: the plan of the same float graph, built here."""
    fp16, written = estimate(folder)
    graph = folder / "alone.onnx"
    onnx.save(type_graph(onnx.load(folder / "model.onnx")), graph)
    alone = read_steps(build(BuildSpec(graph, RTX, "fp16", BATCH, None)).data)
    assert written["fp16"]["steps"]["steps"] == fp16["plan"]["total"]["steps"] == len(alone)
    assert written["int8"]["steps"]["steps"] == len(read_steps((folder / "engine.engine").read_bytes()))
    macs = [written[engine] for engine in ("int8", "fp16")]
    assert len({engine["int8_macs"] + engine["float_macs"] for engine in macs}) == 1, "the same products in both"
    assert macs[0]["int8_macs"] > macs[1]["int8_macs"] == 0
    assert written["targets"][0]["target"] == "rtx"
    assert [up["batch"] for up in written["targets"][0]["batches"]] == [1, 8]
    assert written["reason"] == ""


def test_a_weight_beyond_fp16_leaves_the_build_without_an_estimate(folder):
    model = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w_q")
    weight.CopyFrom(numpy_helper.from_array(np.full((16, 16), 1e6, np.float32), "w_q"))
    onnx.save(model, folder / "model.onnx")
    fp16, written = estimate(folder)
    assert fp16["plan"] is None
    assert written["fp16"] is None
    assert written["targets"] == []
    assert "overflow FP16" in written["reason"]
