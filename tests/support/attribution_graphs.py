"""Graphs changed and run for the tests of attribution, independently of the code that they test."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from edge.attribution.attribution_record import GraphFile
from edge.attribution.build_graphs import LoadedGraph

FILE = GraphFile("planted.onnx", "0" * 64)
MEAN = np.array([0.2, -0.1, 0.4], np.float32)[:, None, None]


def with_judged(graphs, model):
    return replace(graphs, judged=LoadedGraph(FILE, model), between=())


def copied(model):
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def edited(model, names, change):
    """A copy in which some initializers, by the start of their names, have other values."""
    made = copied(model)
    found = [t for t in made.graph.initializer if any(t.name in (n, f"{n}/fp16") for n in names)]
    assert found, names
    for tensor in found:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(values.copy()), values.dtype), tensor.name))
    return made


def scaled(model, tensor, factor):
    return edited(model, [f"{tensor}_scale"], lambda v: v * factor)


def run(model, feeds, outputs=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = outputs or [v.name for v in session.get_outputs()]
    wanted = {v.name for v in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in feeds.items() if k in wanted}), strict=True))


def run_tapped(model, images, tensors):
    made = copied(model)
    own = {v.name for v in made.graph.output}
    made.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors if t not in own)
    return run(made, {"image": images}, list(dict.fromkeys((*own, *tensors))))


def db(x, found):
    noise = np.sum((np.float64(found) - x) ** 2)
    return 300.0 if noise == 0 else 10 * np.log10(np.sum(np.float64(x) ** 2) / noise)


def kinds(found):
    return [culprit.kind for culprit in found.culprits]


def taken(images, count):
    return images[np.linspace(0, len(images) - 1, count).round().astype(int)]
