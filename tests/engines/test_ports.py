"""Graphs of uint8 images, several outputs and a fixed batch: what a build knows of them, and that backends build them."""

import importlib.util

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from two_output_graph import HEIGHT, SHAPES, WIDTH, pictures, two_output_graph

from calib.errors import GraphError
from engines.build import build
from engines.build_spec import BatchRange, BuildSpec
from engines.layer_records import TensorInfo
from engines.layer_requests import graph_facts
from engines.targets import TARGETS
from engines.torch_tensorrt.onnx_program import OnnxModule, export_program
from engines.typed_graph import type_graph

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
NAMES, TYPES = ("map", "scores", "index"), ("float32", "float32", "int64")


def outputs(batch):
    return tuple(TensorInfo(name, (batch, *shape), kind) for name, shape, kind in zip(NAMES, SHAPES, TYPES, strict=True))


@pytest.mark.parametrize(
    ("target", "precision"),
    [("cpu", "fp32"), pytest.param("rtx", "fp32", marks=needs_rtx), pytest.param("rtx", "fp16", marks=needs_rtx)],
)
@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_an_engine_of_any_ports(tmp_path, target, precision, batch):
    model = two_output_graph(batch)
    path = tmp_path / "g.onnx"
    path.write_bytes((type_graph(model) if precision == "fp16" else model).SerializeToString())
    built = build(BuildSpec(path, TARGETS[target], precision, BatchRange(1, 2, 4)))
    size = -1 if batch == "batch" else batch
    assert built.input == TensorInfo("image", (size, HEIGHT, WIDTH, 3), "uint8")
    assert built.outputs == outputs(size)
    assert built.batch == (BatchRange(1, 2, 4) if size == -1 else BatchRange(size, size, size))


def test_ports_that_are_not_tensors_of_numbers_are_refused():
    assert graph_facts(two_output_graph()).outputs == outputs(-1)
    model = two_output_graph()
    model.graph.output.append(helper.make_tensor_value_info("word", TensorProto.STRING, ["batch"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None))
    with pytest.raises(GraphError, match=r"found: 1 inputs, 5 outputs; not tensors of numbers: word, parts"):
        graph_facts(model)
    model = two_output_graph()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch"]))
    with pytest.raises(GraphError, match="found: 2 inputs"):
        graph_facts(model)


def test_a_torch_program_has_all_outputs_too():
    """The graph without the operators that the conversion to torch does not know, with an inner tensor as second output."""
    model = two_output_graph()
    for name in ("places", "index", "positive", "pooled", "flat", "scores"):
        (at,) = [i for i, node in enumerate(model.graph.node) if node.output[0] == name]
        del model.graph.node[at]
    del model.graph.output[1:]
    model.graph.output.append(helper.make_tensor_value_info("planes", TensorProto.FLOAT, ["batch", 3, HEIGHT, WIDTH]))
    images = pictures(2)
    with torch.no_grad():
        found = OnnxModule(model)(torch.from_numpy(images))
    for output, expected in zip(found, ReferenceEvaluator(model).run(None, {"image": images}), strict=True):
        np.testing.assert_allclose(output.numpy(), expected, rtol=1e-4, atol=1e-4)
    program = export_program(model, BatchRange(1, 1, 2))
    assert (program.dtype, program.outputs) == ("uint8", ("map", "planes"))
