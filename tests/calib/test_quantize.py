"""Oracles: digests of the files themselves, and the float graph's outputs on other images. The controls at the end spoil a good
calibration in every way that has happened to somebody, and say which check sees it: the outputs, lint, or a digest.
"""

import hashlib
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.calibration_table import SEARCHED, TensorScale, check_table, load_table, save_table
from calib.collect import CollectConfig
from calib.errors import ArtifactError, DataError, InputError, UsageError, VerdictError
from calib.lint import lint_graph
from calib.metrics import sqnr_db
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.qdq_writer import read_qdq, serialize
from calib.quantize import CalibrateConfig, calibrate_graph, quantize_graph

SCHEME = QuantScheme()
SEEN_DB = 6.0
"""A fall of the outputs' SQNR that no one can take for noise: twice the error."""


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(model, images):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def unseen():
    return np.random.default_rng(8).normal(size=(64, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def images():
    return np.random.default_rng(7).normal(size=(256, 3, 8, 8)).astype(np.float32)


def calibrated(path, images, **settings):
    """Refined file and table; the table has gone through its file."""
    refined, count = path.with_name("refined.onnx"), len(images)
    config = CalibrateConfig(**settings)
    table = calibrate_graph(
        path, refined, lambda: np.split(images, count // 16), images=count, data_sha256="images", config=config
    )
    save_table(path.with_name("table.json"), table)
    assert load_table(path.with_name("table.json")) == table
    return refined, table


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_the_table_records_its_sources(tiny_path, images, effort):
    source = tiny_path.read_bytes()
    refined, table = calibrated(tiny_path, images, effort=effort)
    assert tiny_path.read_bytes() == source
    assert table.onnx_sha256 == digest(refined)
    assert (table.images, table.data_sha256, table.synthetic) == (256, "images", False)
    assert table.method in ("mse", "minmax"), "the default, or what held-out images prefer"
    if effort == "fast":
        assert refined.read_bytes() == source
        assert (table.source_sha256, table.refinements) == ("", ())
    else:
        assert table.source_sha256 == digest(tiny_path) != digest(refined)
        assert table.refinements[:3] == ("search", "smooth", "shift")
        assert ("insert" in table.refinements) == (effort == "best")
    model = onnx.load(refined)
    assert tuple(table.tensors) == plan_quantization(model).activations
    settled = {t for t, entry in table.tensors.items() if entry.method == SEARCHED}
    assert len(settled) == (0 if effort == "fast" else 3), "of the others, products of two activations read some"
    assert {entry.method for t, entry in table.tensors.items() if t not in settled} == {table.method}
    check_table(table, onnx_sha256=digest(refined), data_sha256="images")
    made = quantize_graph(model, table, SCHEME, refined)
    assert lint_graph(made) == ()
    found = read_qdq(made)
    assert all(found[t].scale == (entry.scale,) for t, entry in table.tensors.items())


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_two_batches_at_once_give_the_bytes_of_one(tiny_path, images, effort):
    tables = []
    for at_once in (1, 2):
        refined, _ = calibrated(tiny_path, images, effort=effort, collect=CollectConfig(at_once=at_once))
        tables.append((refined.read_bytes(), refined.with_name("table.json").read_bytes()))
    assert tables[0] == tables[1]


def test_a_table_of_the_refined_graph_is_refused_for_its_source(tiny_path, images):
    refined, table = calibrated(tiny_path, images)
    with pytest.raises(ArtifactError, match=r"refined graph[\s\S]*search, smooth, shift, rounding, bias"):
        check_table(table, onnx_sha256=digest(tiny_path))
    check_table(table, onnx_sha256=digest(refined))


def test_bounds_are_asked_for_the_refined_graph_and_kept(tiny_path, images):
    asked = []

    def bounds(model):
        asked.append(model)
        return {"image": 50.0, "kt": 60.0}

    refined, table = calibrated(tiny_path, images, effort="best", bounds=bounds)
    assert [m.SerializeToString(deterministic=True) for m in asked] == [
        serialize(onnx.load(tiny_path)),
        refined.read_bytes(),
    ]
    assert table.tensors["image"].method == SEARCHED
    assert {t: e.bound for t, e in table.tensors.items() if e.bound is not None} == {"image": 50.0, "kt": 60.0}
    with pytest.raises(InputError, match="exceeds the bound"):
        calibrated(tiny_path, images, bounds=lambda _model: {"image": 0.5})


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_progress_rises_to_one(tiny_path, images, effort):
    seen = []
    calibrate_graph(
        tiny_path,
        tiny_path.with_name("refined.onnx"),
        lambda: np.split(images, 16),
        images=256,
        data_sha256="",
        config=CalibrateConfig(effort=effort),
        progress=seen.append,
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(seen) >= 4


def test_too_few_images_are_refused_before_anything_is_written(tiny_path, images):
    for effort in ("fast", "balanced"):
        with pytest.raises(DataError, match=r"too few calibration images[\s\S]*found: 31[\s\S]*at least 32"):
            calibrate_graph(
                tiny_path,
                tiny_path.with_name("refined.onnx"),
                lambda: pytest.fail("no image is looked at"),
                images=31,
                data_sha256="",
                config=CalibrateConfig(effort=effort),
            )
    assert [p.name for p in tiny_path.parent.iterdir()] == ["tiny.onnx"]
    few = CollectConfig(min_images=8)
    refined = tiny_path.with_name("refined.onnx")
    calibrate_graph(tiny_path, refined, lambda: [images[:8]], images=8, data_sha256="", config=CalibrateConfig(collect=few))


def test_unknown_names_are_refused_at_once():
    with pytest.raises(UsageError, match="unknown effort"):
        CalibrateConfig(effort="heroic")


def odd_names(make_model):
    """Names that are globs: as patterns, the first two would match the last two, or nothing."""
    names = ["blocks[01]/fc*", "head?", "blocks0/fc1", "head2"]
    tensors = ["x", "a", "b", "c", "y"]
    nodes = [h.make_node("MatMul", [tensors[i], f"w{i}"], [tensors[i + 1]], name=name) for i, name in enumerate(names)]
    constants = {f"w{i}": np.random.default_rng(i).normal(size=(6, 6)).astype(np.float32) for i in range(4)}
    return make_model(nodes, constants, [("x", T.FLOAT, ["n", 6])], [("y", T.FLOAT, ["n", 6])]), names


def test_float_nodes_are_matched_by_exact_names(make_model, tmp_path):
    model, names = odd_names(make_model)
    path = tmp_path / "odd.onnx"
    onnx.save(model, path)
    values = np.random.default_rng(5).normal(size=(64, 6)).astype(np.float32)
    refined, table = calibrated(path, values, effort="balanced")
    kept = quantize_graph(onnx.load(refined), replace(table, float_nodes=tuple(names[:2])), SCHEME, refined)
    whole = quantize_graph(onnx.load(refined), table, SCHEME, refined)

    def in_int8(graph):
        dequantized = {n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
        products = [n for n in graph.graph.node if n.op_type == "MatMul"]
        assert [n.name for n in products] == names
        return [n.name for n in products if set(n.input) <= dequantized]

    assert in_int8(whole) == names
    assert in_int8(kept) == names[2:]
    reference = run(model, values)
    assert sqnr_db(reference, run(kept, values)) > sqnr_db(reference, run(whole, values))
    with pytest.raises(UsageError, match="exclusion matches no node"):
        quantize_graph(onnx.load(refined), replace(table, float_nodes=("gone",)), SCHEME, refined)


def test_a_graph_that_would_not_run_in_int8_is_refused_by_layer(make_model, tmp_path):
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], name="layer"),
        h.make_node("DynamicQuantizeLinear", ["a"], ["q", "s", "z"], name="dynamic"),
        h.make_node("MatMulInteger", ["q", "i", "z"], ["n"], name="integer"),
        h.make_node("Cast", ["n"], ["y"], to=T.FLOAT),
    ]
    constants = {"w": np.eye(4, dtype=np.float32), "i": np.eye(4, dtype=np.int8)}
    model = make_model(nodes, constants, [("x", T.FLOAT, ["n", 4])], [("y", T.FLOAT, ["n", 4])])
    path = tmp_path / "mixed.onnx"
    onnx.save(model, path)
    _, table = calibrated(path, np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32), effort="fast")
    with pytest.raises(VerdictError, match=r"would not run in INT8[\s\S]*where: here[\s\S]*integer: [\s\S]*in all"):
        quantize_graph(model, table, SCHEME, "here")


@pytest.fixture
def good(tiny, tiny_path, images):
    """Refined graph, table, Q/DQ graph, and the SQNR of its outputs."""
    refined, table = calibrated(tiny_path, images)
    model = onnx.load(refined)
    made = quantize_graph(model, table, SCHEME, refined)
    decibels = sqnr_db(run(tiny, unseen()), run(made, unseen()))
    assert decibels > 28
    return model, table, made, decibels


def rescaled(table, amax_of):
    tensors = {t: TensorScale.from_amax(amax_of(i, e), t, e.method) for i, (t, e) in enumerate(table.tensors.items())}
    return replace(table, tensors=tensors)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_control_scales_of_other_tensors_change_the_outputs(tiny, good, shift):
    model, table, _, decibels = good
    ranges = [entry.amax for entry in table.tensors.values()]
    spoiled = quantize_graph(model, rescaled(table, lambda i, _entry: ranges[i - shift]), SCHEME, "")
    assert lint_graph(spoiled) == (), "every scale is legal"
    assert sqnr_db(run(tiny, unseen()), run(spoiled, unseen())) < decibels - SEEN_DB


@pytest.mark.parametrize("factor", [0.5, 8.0])
def test_control_scales_wrong_by_a_factor_change_the_outputs(tiny, good, factor):
    model, table, _, decibels = good
    spoiled = quantize_graph(model, rescaled(table, lambda _i, entry: entry.amax * factor), SCHEME, "")
    assert lint_graph(spoiled) == ()
    assert sqnr_db(run(tiny, unseen()), run(spoiled, unseen())) < decibels - SEEN_DB


def test_control_a_halved_scale_beside_its_amax_is_refused(good):
    entry = next(iter(good[1].tensors.values()))
    with pytest.raises(ArtifactError, match="scale does not match amax"):
        replace(entry, scale=entry.scale / 2)


def with_scale(made, weight, factor):
    """A copy of a Q/DQ graph with the scale of one channel of a weight multiplied."""
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(made)
    node = next(n for n in spoiled.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == weight)
    target = next(t for t in spoiled.graph.initializer if t.name == node.input[1])
    scales = numpy_helper.to_array(target).copy()
    scales[len(scales) // 2] *= np.float32(factor)
    target.CopyFrom(numpy_helper.from_array(scales, target.name))
    return spoiled


def weights_of(made):
    return [tensor for tensor, info in read_qdq(made).items() if info.kind == "weight"]


def test_control_one_wrong_channel_of_a_weight_changes_the_outputs(tiny, good):
    _, _, made, decibels = good
    assert len(weights_of(made)) == 5
    for weight in weights_of(made):
        spoiled = with_scale(made, weight, 100)
        assert lint_graph(spoiled) == (), "it is a legal scale"
        assert sqnr_db(run(tiny, unseen()), run(spoiled, unseen())) < decibels - SEEN_DB, weight


@pytest.mark.parametrize("factor", [0.0, -1.0, np.inf, np.nan])
def test_control_an_invalid_scale_is_found_by_lint(good, factor):
    for weight in weights_of(good[2]):
        assert {f.rule for f in lint_graph(with_scale(good[2], weight, factor))} == {"scale-invalid"}


def test_control_a_table_of_other_weights_is_refused_by_its_digest(tiny, tiny_path, images, good):
    _, table, _, _ = good
    head = next(t for t in tiny.graph.initializer if t.name == "w_head")
    weight = numpy_helper.to_array(head).copy()
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(9))  # one bit of one weight
    head.CopyFrom(numpy_helper.from_array(weight, "w_head"))
    onnx.save(tiny, tiny_path)
    with pytest.raises(ArtifactError, match="belongs to another graph, or to one with other weights"):
        check_table(table, onnx_sha256=digest(tiny_path))
    refined, other = calibrated(tiny_path, images)
    assert other.source_sha256 != table.source_sha256
    with pytest.raises(ArtifactError, match="other weights"):
        check_table(table, onnx_sha256=digest(refined))


def test_control_a_table_of_other_images_is_refused_by_its_digest(good):
    with pytest.raises(ArtifactError, match="other calibration images"):
        check_table(good[1], onnx_sha256=good[1].onnx_sha256, data_sha256="other images")


def test_control_a_tensor_without_a_scale_is_refused(good):
    model, table, _, _ = good
    fewer = replace(table, tensors={t: e for t, e in table.tensors.items() if t != "ln"})
    with pytest.raises(ArtifactError, match=r"no scale[\s\S]*ln"):
        quantize_graph(model, fewer, SCHEME, "")
