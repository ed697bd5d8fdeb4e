"""Attribution of the shipped network: an honest build has no fault, and each planted one is named."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from attribution_graphs import FILE, MEAN, edited, kinds, scaled, with_judged
from shipped_build import make_shipped_build

from calib.collect import CollectConfig, collect_table
from calib.ort_session import GraphSession
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.quantize import quantize_graph
from edge.assets import CALIBRATION_IMAGES, TEST_IMAGES
from edge.attribution import float_fallback
from edge.attribution.attribute import attribute_graphs
from edge.attribution.build_graphs import BuildGraphs, LoadedGraph, load_graphs
from edge.attribution.paired_images import PairedImages
from edge.images.labelled_images import open_images
from edge.model.metadata import read_graph_info
from engines.build_folder.file_names import QUANTIZED, TYPED
from engines.build_folder.folder import BuildFolder
from engines.typed_graph import type_graph


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Its INT8 build, judged by the graph with Q/DQ, and 96 of its test images."""
    out = make_shipped_build(tmp_path_factory)
    graphs = load_graphs(BuildFolder(out))
    if graphs.judged.file.file == TYPED:
        *between, judged = graphs.between
        graphs = replace(graphs, judged=judged, between=tuple(between))
    assert graphs.judged.file.file == QUANTIZED
    info = read_graph_info(graphs.reference.model, out / "model.onnx")
    (images,) = open_images(TEST_IMAGES, info.labels).take(96).batches(info.preprocess, 96)
    return graphs, images


@pytest.fixture
def without_costs(monkeypatch):
    """No group of layers is measured in isolation or tried in float: the faults are found before, and do not depend on it."""
    monkeypatch.setattr("edge.attribution.float_fallback.find_groups", lambda _judged, _spans: ())


@pytest.mark.slow
def test_shipped_honest(shipped, without_costs):
    graphs, images = shipped
    assert attribute_graphs(graphs, images[1::3]).culprits == ()


@pytest.mark.slow
def test_shipped_honest_with_the_costs_of_its_layers(shipped):
    """The layers after the stem's first two, and the head, cost most; the head in float gains for certain.

    Layers disturb the logits nearly independently: the noise of each alone sums to the noise of all, on the same images.
    """
    graphs, images = shipped[0], shipped[1][::3]
    found = attribute_graphs(graphs, images)
    assert found.culprits == ()
    *alone, together = found.costliest
    assert {"stem.6/Conv", "stem.9/Conv", "head/Gemm"} <= set(together.layers)
    assert "head/Gemm" in {layer for trial in alone if trial.confirmed for layer in trial.layers}
    assert together.share > 0.5
    assert "of 135 groups of layers make" in found.sentence
    few = PairedImages(images, images).take(float_fallback.ISOLATED_IMAGES).reference
    reference, judged = (
        GraphSession(graph.model, threads=0)({"image": few})[graph.model.graph.output[0].name].astype(np.float64)
        for graph in (graphs.base, graphs.judged)
    )
    seen = ((judged - reference) ** 2).sum() / (reference**2).sum()
    total = sum(10 ** (-isolated / 10) for isolated, _share in groups_of(found))
    assert 10 * np.log10(total / seen) == pytest.approx(0, abs=2)


def groups_of(found):
    """(isolated SQNR, share) of each group, once."""
    return {(layer.isolated_db, layer.logits_share) for layer in found.layers if layer.isolated_db is not None}


@pytest.mark.slow
def test_shipped_wrong_scale(shipped, without_costs):
    graphs, images = shipped
    tensor = "blocks.7.norm1/LayerNormalization_output"
    found = attribute_graphs(with_judged(graphs, scaled(graphs.judged.model, tensor, 2)), images[:16])
    assert [(c.kind, c.where) for c in found.culprits] == [("scale_too_large", tensor)]


@pytest.mark.slow
def test_shipped_zeroed_channel_and_other_weights(shipped, without_costs):
    graphs, images = shipped

    def zero(values):
        values[:, 17] = 0
        return values

    weight = "blocks.5.attn.proj/MatMul.weight_quantized"
    found = attribute_graphs(with_judged(graphs, edited(graphs.judged.model, [weight], zero)), images[:16])
    assert [(c.kind, c.where) for c in found.culprits] == [("zeroed_channel", "blocks.5.attn.proj/MatMul")]
    names = [t.name for t in graphs.judged.model.graph.initializer if len(t.dims) > 1]
    rng = np.random.default_rng(0)

    def further(values):
        found = values + 0.05 * values.std() * rng.normal(size=values.shape)
        return np.clip(np.rint(found), -127, 127) if values.dtype == np.int8 else found

    moved = edited(graphs.judged.model, names, further)
    found = attribute_graphs(with_judged(graphs, moved), images[:16])
    assert [(c.kind, c.where) for c in found.culprits] == [("other_weights", "stem.0/Conv")]


@pytest.mark.slow
def test_shipped_calibrated_on_four_images(shipped, without_costs, tmp_path):
    graphs, images = shipped
    path = tmp_path / "float.onnx"
    onnx.save(graphs.base.model, path)
    info = read_graph_info(graphs.reference.model, path)
    source = open_images(CALIBRATION_IMAGES, info.labels)
    batch = np.stack([info.preprocess(source.pixels(i)) for i in range(4)])
    scheme = QuantScheme(exclude=("stem.0/Conv", "stem.3/Conv"))
    plan = plan_quantization(graphs.base.model, scheme)
    table = collect_table(path, iter([batch]), plan, data_sha256="0", config=CollectConfig(min_images=1))
    found = attribute_graphs(with_judged(graphs, quantize_graph(graphs.base.model, table, scheme, "")), images[:16])
    assert kinds(found) == ["calibration"]
    assert len(found.culprits[0].layers) >= 8


@pytest.mark.slow
def test_shipped_overflow_and_preprocessing(shipped, without_costs):
    graphs, images = shipped
    names = ("blocks.4.attn.k/MatMul.weight/folded", "blocks.4.attn.k.bias/folded")
    reference = LoadedGraph(FILE, edited(graphs.base.model, names, lambda v: v * 256))
    judged = LoadedGraph(replace(FILE, sha256="1" * 64), type_graph(reference.model))
    found = attribute_graphs(BuildGraphs(reference, reference, judged), images[:16])
    assert [(c.kind, c.where) for c in found.culprits] == [("overflow", "blocks.4.attn.xnorm_kv/ReduceL2")]
    assert found.culprits[0].layers == ("blocks.4.attn/MatMul_1",)
    found = attribute_graphs(graphs, images[:16], images[:16] + MEAN)
    assert kinds(found) == ["input"]
    assert "another mean" in found.sentence
