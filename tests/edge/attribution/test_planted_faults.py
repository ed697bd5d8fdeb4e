"""Faults planted in a real INT8 build of the tiny network: each has to be named, layer and kind, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from attribution_graphs import FILE, MEAN, copied, edited, kinds, scaled, with_judged
from onnx import numpy_helper
from tiny_network import TINY
from tiny_project import LABELS, build, make_project

from calib.collect import CollectConfig, collect_table
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.quantize import quantize_graph
from edge.attribution.attribute import attribute_build, attribute_graphs
from edge.attribution.build_graphs import BuildGraphs, LoadedGraph, load_graphs
from edge.attribution.layer_spans import find_spans
from edge.attribution.weight_errors import rounded_already
from edge.images.labelled_images import open_images
from edge.images.preprocess import Preprocess
from edge.model.sizes import SIZES
from engines.build_folder.folder import BuildFolder
from engines.typed_graph import type_graph

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", range(4))
def test_an_honest_build_has_no_culprit(graphs, typed, images, honest, part):
    assert honest.culprits == ()
    assert honest.sentence.startswith("No layer is at fault: each errs as its format makes it err")
    for build_of in (graphs, typed):
        found = attribute_graphs(build_of, images[part::4])
        assert found.culprits == ()


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "effort"), [(1, "fast"), (2, "balanced"), (3, "fast")])
def test_honest_builds_of_other_networks_have_none(tmp_path, make_network, tiny_size, seed, effort):
    make_project(tmp_path, make_network(seed), TINY, seed)
    assert build(tmp_path, "--effort", effort, "--max-drop", "100") in (0, 3)
    found = attribute_build(BuildFolder(tmp_path / "out"), open_images(tmp_path / "test", LABELS), lambda _share: None)
    assert found.culprits == ()
    graphs = load_graphs(BuildFolder(tmp_path / "out"))
    (refined,) = (graph for graph in graphs.between if graph.file.file == "model.refined.onnx")
    held = rounded_already(refined.model, graphs.judged.model, find_spans(graphs.base.model))
    assert ("blocks.0.ffn.2/MatMul" in held) == (effort == "balanced"), "second-order rounding, and nothing else"


SCALES = (
    "stem.8/Gelu_output",
    "blocks.0.norm1/LayerNormalization_output",
    "blocks.0.attn/Transpose_2_output",
    "blocks.1.attn.xnorm_q/Div_output",
    "blocks.1.lpi.norm/BatchNormalization_output",
    "blocks.0.ffn.1/Gelu_output",
    "cls_blocks.0.attn.xnorm_kv/Div_output",
    "norm/LayerNormalization_output",
)


@pytest.mark.parametrize(("at", "tensor"), [*enumerate(SCALES)])
@pytest.mark.parametrize(("factor", "kind"), [(2, "scale_too_large"), (0.5, "scale_too_small")])
def test_a_wrong_scale(graphs, typed, images, at, tensor, factor, kind):
    source = typed if (at % 2 == 0) == (factor == 2) else graphs
    found = attribute_graphs(with_judged(source, scaled(source.judged.model, tensor, factor)), images)
    assert [(c.kind, c.where) for c in found.culprits] == [(kind, tensor)]
    assert tensor in found.sentence
    assert ("clipping" if factor < 1 else "rounding") in found.sentence
    readers = next(a.readers for a in found.activations if a.tensor == tensor)
    assert found.culprits[0].layers == readers
    assert readers


CHANNELS = (
    ("blocks.1.attn.proj/MatMul.weight", 17, 1, "blocks.1.attn.proj/MatMul"),
    ("blocks.0.ffn.0/MatMul.weight", 100, 1, "blocks.0.ffn.0/MatMul"),
    ("blocks.1.lpi.conv2.weight", 3, 0, "blocks.1.lpi.conv2/Conv"),
    ("head.weight", 4, 0, "head/Gemm"),
)


@pytest.mark.parametrize("typed_too", [False, True])
@pytest.mark.parametrize("where", CHANNELS)
def test_a_channel_of_zeros(graphs, typed, images, where, typed_too):
    weight, channel, axis, layer = where

    def zero(values):
        np.moveaxis(values, axis, 0)[channel] = 0
        return values

    source = typed if typed_too else graphs
    found = attribute_graphs(with_judged(source, edited(source.judged.model, [f"{weight}_quantized"], zero)), images)
    assert [(c.kind, c.where) for c in found.culprits] == [("zeroed_channel", layer)]
    assert f"output channel {channel} of {layer}" in found.sentence
    row = next(r for r in found.layers if r.name == layer)
    assert row.worst_channel == channel
    assert row.worst_channel_db == pytest.approx(0, abs=1e-6)


def test_a_zeroed_channel_of_a_layer_in_float(graphs, images):
    def zero(values):
        values[2] = 0
        return values

    found = attribute_graphs(with_judged(graphs, edited(graphs.judged.model, ["stem.0.weight"], zero)), images)
    assert [(c.kind, c.where) for c in found.culprits] == [("zeroed_channel", "stem.0/Conv")]


@pytest.mark.parametrize("exponent", [8, 12])
@pytest.mark.parametrize(("weights", "where"), [
    (("blocks.1.attn.k/MatMul.weight", "blocks.1.attn.k.bias"), "blocks.1.attn.xnorm_kv/ReduceL2"),
    (("cls_blocks.0.attn.q/MatMul.weight", "cls_blocks.0.attn.q.bias"), "cls_blocks.0.attn.xnorm_q/ReduceL2"),
])  # fmt: skip
def test_an_overflow_of_fp16(graphs, images, weights, where, exponent):
    """XNorm forgets the length of K and Q, so that FP32 gives the same logits; squares of FP16 end at 65504."""
    reference = edited(graphs.reference.model, weights, lambda v: v * 2.0**exponent)
    loaded = LoadedGraph(FILE, reference)
    judged = LoadedGraph(replace(FILE, sha256="1" * 64), type_graph(reference))
    found = attribute_graphs(BuildGraphs(loaded, loaded, judged), images)
    assert found.culprits[0].kind == "overflow"
    assert found.culprits[0].where == where or exponent == 12
    assert {c.kind for c in found.culprits} == {"overflow"}
    assert "65504" in found.sentence
    reads = next(r for r in found.layers if r.name == f"{where.split('.xnorm')[0]}/MatMul_1")
    assert reads.not_finite > 0 or exponent == 12
    assert reads.introduced_db < 20
    assert all(np.isfinite(v) for v in (found.logits_db, reads.fp16_db))


@pytest.mark.parametrize("typed_too", [False, True])
@pytest.mark.parametrize("how", ["another network", "trained a little further"])
def test_weights_of_another_network(graphs, typed, images, how, typed_too):
    source = typed if typed_too else graphs
    model = copied(source.judged.model)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.dtype in (np.int8, np.float16, np.float32):
            moved = rng.normal(size=values.shape) * values.std()
            changed = moved if how == "another network" else values + 0.05 * moved
            changed = np.clip(np.rint(changed), -127, 127) if values.dtype == np.int8 else changed
            tensor.CopyFrom(numpy_helper.from_array(changed.astype(values.dtype), tensor.name))
    found = attribute_graphs(with_judged(source, model), images)
    assert kinds(found) == ["other_weights"]
    assert found.culprits[0].where == "stem.0/Conv", "all layers differ from the very first"
    assert "other weights" in found.sentence
    assert found.layers[0].introduced_db < 40


def test_a_build_of_another_checkpoint(built, images, make_network, tmp_path, tiny_size):
    """What a mixed-up deployment gives: this week's reference, last week's engine."""
    make_project(tmp_path, make_network(9), TINY)
    assert build(tmp_path, "--max-drop", "100") in (0, 3)
    other = load_graphs(BuildFolder(tmp_path / "out"))
    here = load_graphs(BuildFolder(built / "out"))
    assert kinds(attribute_graphs(replace(here, judged=other.judged, between=()), images)) == ["other_weights"]
    mixed = attribute_graphs(replace(other, reference=here.reference), images)
    assert mixed.culprits[0].kind == "float_graph"
    assert mixed.culprits[0].where == "stem.0/Conv"


def test_calibration_on_a_few_images(graphs, built, images):
    preprocess = read_graph_info_of(graphs)
    few = open_images(built / "calibration", LABELS)
    scheme = QuantScheme(exclude=("stem.0/Conv", "stem.3/Conv"))
    path = built / "out" / "model.refined.onnx"
    batch = np.stack([preprocess(few.pixels(i)) for i in range(2)])
    table = collect_table(
        path,
        iter([batch]),
        plan_quantization(onnx.load(path), scheme),
        data_sha256="0",
        config=CollectConfig(min_images=1),
    )
    found = attribute_graphs(with_judged(graphs, quantize_graph(onnx.load(path), table, scheme, "")), images)
    assert kinds(found) == ["calibration"]
    assert len(found.culprits[0].layers) >= 4
    assert "calibrated on too few images" in found.sentence


def read_graph_info_of(graphs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, TINY.name, TINY)
        text = {p.key: p.value for p in graphs.reference.model.metadata_props}["ufovit"]
        return Preprocess.from_json(json.loads(text)["preprocess"])


@pytest.mark.parametrize("change", [lambda x: x + MEAN, lambda x: np.ascontiguousarray(x[:, ::-1])])
def test_another_preprocessing_on_one_side(graphs, images, change):
    """Nothing in the graph is at fault, and nothing in it is named; colours, or BGR would not be another picture."""
    colours = images * np.array([1, 0.9, 1.1], np.float32)[:, None, None]
    colours[:, 1] = colours[:, 1, ::-1]
    found = attribute_graphs(graphs, colours, change(colours))
    assert found.culprits[0].kind == "input"
    assert "the input itself differs" in found.sentence
    assert not {"outlier", "weights", "constants", "other_weights", "structure", "overflow"} & set(kinds(found))
    same = attribute_graphs(graphs, colours)
    assert found.culprits[1:] == same.culprits
    assert [r.introduced_db for r in found.layers] == [r.introduced_db for r in same.layers], (
        "layers are judged on the reference's"
    )
    assert found.images_sha256 == same.images_sha256 != found.judged_images_sha256


def test_a_graph_that_is_wired_otherwise(graphs, images):
    model = copied(graphs.judged.model)
    node = next(n for n in model.graph.node if n.name == "blocks.1/Add_1")
    node.input[list(node.input).index("blocks.1/Add_output")] = "blocks.0/Add_2_output"
    found = attribute_graphs(with_judged(graphs, model), images)
    assert found.culprits[0].kind == "structure"
    assert found.culprits[0].where == "blocks.1/Add_1"
    assert "reads blocks.0/Add_2_output" in found.sentence
    assert {layer for c in found.culprits for layer in c.layers} == {"blocks.1/Add_1"}


@pytest.mark.parametrize(("constant", "change", "layer"), [
    ("blocks.1.ffn.0.bias", lambda v: v * 0, "blocks.1.ffn.0/MatMul"),
    ("blocks.0.norm2.weight", lambda v: v * 1.2, "blocks.0.lpi.conv1/Conv"),
])  # fmt: skip
def test_other_constants(graphs, images, constant, change, layer):
    found = attribute_graphs(with_judged(graphs, edited(graphs.judged.model, [constant], change)), images)
    assert [(c.kind, c.where) for c in found.culprits] == [("constants", layer)]


def test_weights_of_one_layer(graphs, images):
    swapped = edited(graphs.judged.model, ["blocks.0.ffn.2/MatMul.weight_quantized"], lambda v: v[::-1])
    found = attribute_graphs(with_judged(graphs, swapped), images)
    assert [(c.kind, c.where) for c in found.culprits] == [("weights", "blocks.0.ffn.2/MatMul")]


BELOW_NOISE = (
    ("blocks.0.ffn.1/Gelu_output_scale", lambda v: v * 1.1),
    ("blocks.0.norm1/LayerNormalization_output_scale", lambda v: v * 0.95),
    ("blocks.1.ffn.0.bias", lambda v: v * 1.002),
    ("blocks.1.attn.proj/MatMul.weight_quantized", lambda v: v + (np.arange(v.size).reshape(v.shape) == 77)),
)


@pytest.mark.parametrize(("name", "change"), BELOW_NOISE)
def test_a_fault_below_the_noise_is_not_named(graphs, images, name, change):
    found = attribute_graphs(with_judged(graphs, edited(graphs.judged.model, [name], change)), images)
    assert found.culprits == ()
