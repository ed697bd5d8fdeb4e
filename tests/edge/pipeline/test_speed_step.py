"""The step `speed` on tiny graphs: the FP16 engine is built beside the INT8 engine, and never fails the build."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from engine_graphs import attention
from onnx import numpy_helper

from calib.errors import MissingError
from edge.pipeline.steps.speed import estimate_speed
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
def folder(tmp_path):
    """An INT8 engine, its typed graph, and the float graph of the same network."""
    onnx.save(type_graph(attention(quantized=True)), tmp_path / "model.typed.onnx")
    onnx.save(attention(), tmp_path / "model.onnx")
    engine = build(BuildSpec(tmp_path / "model.typed.onnx", RTX, "int8", BATCH, 0.0))
    (tmp_path / "engine.engine").write_bytes(engine.data)
    return tmp_path


def estimate(folder):
    request = SimpleNamespace(out=folder, target=RTX, batch=BATCH, engine_file="engine.engine")
    estimate_speed(request, SimpleNamespace(), "model.onnx", False, folder, lambda _share: None)
    return json.loads((folder / "speed.json").read_text())


def test_the_fp16_engine_is_built_beside_the_int8_engine(folder):
    """Oracle: the plan of the same float graph, built here."""
    written = estimate(folder)
    graph = folder / "alone.onnx"
    onnx.save(type_graph(onnx.load(folder / "model.onnx")), graph)
    alone = read_steps(build(BuildSpec(graph, RTX, "fp16", BATCH, None)).data)
    assert written["fp16"]["total"]["steps"] == len(alone)
    assert written["targets"][0]["target"] == "rtx"
    assert [up["batch"] for up in written["targets"][0]["batches"]] == [1, 8]
    assert written["reason"] == ""
    assert {path.name for path in folder.iterdir()} >= {"speed.json", "engine.engine"}


def test_a_weight_beyond_fp16_leaves_the_build_without_an_estimate(folder):
    model = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w_q")
    weight.CopyFrom(numpy_helper.from_array(np.full((16, 16), 1e6, np.float32), "w_q"))
    onnx.save(model, folder / "model.onnx")
    written = estimate(folder)
    assert written["fp16"] is None
    assert written["targets"] == []
    assert "overflow FP16" in written["reason"]
