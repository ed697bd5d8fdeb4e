"""A stranger's network, uint8 (batch, 48, 80, 3) in and three outputs out, through drift, attribution, bench, camera, bundle.

Oracles: onnx's reference evaluator for answers; what is planted for the drift.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from camera_fakes import ListSource
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from two_output_graph import HEIGHT, SHAPES, WIDTH, pictures, two_output_graph

from calib.errors import ArtifactError, DataError, InputError
from calib.files import sha256_bytes, sha256_file
from edge.attribution.attribute import attribute_graphs
from edge.attribution.attribution_record import GraphFile
from edge.attribution.build_graphs import BuildGraphs, LoadedGraph
from edge.bench.latency import Plan
from edge.bench.measure import Conditions, measure_build
from edge.bench.memory import Resident
from edge.camera.capture import EveryFrameFeed
from edge.camera.loop import Loop, Network
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.drift.recompute_check import check_stated
from edge.drift.stored_reference import read_stored
from edge.images.golden_pair import make_golden, write_golden
from edge.images.labelled_images import ImageSet
from edge.images.preprocess import Preprocess
from edge.pipeline import request_checks
from edge.pipeline.pack_bundle import budget_of, make_bundle, read_bundled_images, read_source
from edge.pipeline.steps import drift as drift_step
from edge.pipeline.steps.drift import Question, judge_build
from edge.progress import Silent
from edge.runtime.open_build import open_runner
from edge.runtime.ort_runner import OrtRunner
from edge.tasks.budget import Budget
from edge.tasks.registry import read_answers, task_of
from edge.tasks.tensors import task as tensors_task
from engines.build_folder.bundle_format import verify_bundle
from engines.build_folder.file_names import ANSWERS, DRIFT, GOLDEN, MANIFEST, MODEL, PICTURES
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest, EngineRecord, FileRecord, write_manifest
from engines.build_folder.step_record import StepRecord, write_record
from engines.layer_records import TensorInfo
from engines.layer_requests import graph_facts
from engines.precision_receipt import Receipt

PREPROCESS = Preprocess((HEIGHT, WIDTH), HEIGHT, (0.0,) * 3, (1.0,) * 3, layout="nhwc", dtype="uint8")
PHOTOS = pictures(20)
IMAGES = ImageSet("photos", tuple(map(str, range(20))), np.zeros(20, np.int64), "7" * 64, PHOTOS.__getitem__)
BUDGET = Budget(sqnr_db=20.0)


def disturbed(weight="head", factor=1.05):
    """The graph with one weight changed by a factor."""
    model = two_output_graph()
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), weight))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A build whose engine is the graph itself, but for a head 5 % too large: 26 dB, in one of three outputs."""
    out = tmp_path_factory.mktemp("stranger")
    (out / MODEL).write_bytes(two_output_graph().SerializeToString())
    (out / "engine.onnx").write_bytes(disturbed().SerializeToString())
    facts, data = graph_facts(two_output_graph()), (out / "engine.onnx").read_bytes()
    write_golden(out / GOLDEN, make_golden(PHOTOS[0], PREPROCESS))
    manifest = EngineManifest(
        model="stranger", precision="fp32", target="cpu", task="tensors", created="2026-11-29T00:00:00+00:00",
        checkpoint=None, onnx=FileRecord(MODEL, sha256_file(out / MODEL)), qdq_onnx=None, calibration=None,
        engine=EngineRecord("engine.onnx", sha256_bytes(data), len(data), "ort", "1", ()),
        input=facts.input, outputs=facts.outputs, preprocess={**PREPROCESS.as_json(), "sha256": PREPROCESS.sha256},
        labels=(), receipt=Receipt(0.0, {}, {}, (), 1, None), batch=(1, 1, 32),
        bundle=FileRecord("not.ufovit", "0" * 64),  # so that no report is asked for
    )  # fmt: skip
    write_manifest(out, manifest)
    record(out, MODEL, "engine.onnx", GOLDEN, MANIFEST)
    return out


def record(folder, *files):
    write_record(folder, {"all": StepRecord("0" * 64, {file: sha256_file(folder / file) for file in files})})


def wanted(model, images):
    return ReferenceEvaluator(model).run(None, {"image": images})


def test_the_drift_step_judges_every_output(folder, tmp_path):
    judge_build(BuildFolder(folder), Question(IMAGES, labelled=False, budget=BUDGET), "engine.onnx", tmp_path, lambda _s: None)
    for file in (MODEL, "engine.onnx", GOLDEN, MANIFEST):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    record(tmp_path, MODEL, "engine.onnx", GOLDEN, MANIFEST, DRIFT, ANSWERS)
    build = BuildFolder(tmp_path)
    sides, drift = read_answers(build, task_of(build.manifest)), build.read(DRIFT_ARTIFACT)
    for side, model in ((sides.reference, two_output_graph()), (sides.engine, disturbed())):
        for found, expected in zip(side, wanted(model, PHOTOS), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert [output.shape[1:] for output in side] == [*SHAPES]
        assert side[2].dtype == np.int64
    assert drift.verdict == "pass"
    assert drift.budget == BUDGET


def test_outputs_too_large_to_keep_are_judged_alike(folder, tmp_path, monkeypatch):
    question = Question(IMAGES, labelled=False, budget=BUDGET)
    texts, shares = [], []
    for most in (tensors_task.KEPT_BYTES, 0):
        monkeypatch.setattr(tensors_task, "KEPT_BYTES", most)
        out = tmp_path / str(most)
        out.mkdir()
        judge_build(BuildFolder(folder), question, "engine.onnx", out, shares.append)
        texts.append((out / DRIFT).read_text())
    assert texts[0] == texts[1]
    assert shares[-1] == 1.0
    for file in (MODEL, "engine.onnx", GOLDEN, MANIFEST):
        (out / file).write_bytes((folder / file).read_bytes())
    record(out, MODEL, "engine.onnx", GOLDEN, MANIFEST, DRIFT, ANSWERS)
    build = BuildFolder(out)
    sides = read_answers(build, task_of(build.manifest))
    assert sides.reference == ()
    check_stated(out, task_of(build.manifest), build.read(DRIFT_ARTIFACT), sides)
    with pytest.raises(ArtifactError, match=r"figures of its outputs[\s\S]*20 images[\s\S]*fewer images"):
        read_stored(out)


def test_a_run_returns_few_images_where_their_outputs_are_large(folder, tmp_path, monkeypatch):
    sizes = []

    class Counting(OrtRunner):
        def __call__(self, images):
            sizes.append(len(images))
            return super().__call__(images)

    each = sum(4 * np.prod(shape) for shape in SHAPES[:2]) + 8 * np.prod(SHAPES[2])
    monkeypatch.setattr(drift_step, "LARGEST_BATCH_BYTES", int(3.5 * each))
    opened = Counting(folder / "engine.onnx")
    question = Question(IMAGES, labelled=False, budget=BUDGET)
    judge_build(BuildFolder(folder), question, "engine.onnx", tmp_path, lambda _share: None, opened)
    assert sizes == [3] * 6 + [2]
    monkeypatch.setattr(drift_step, "LARGEST_BATCH_BYTES", 1)
    sizes.clear()
    judge_build(BuildFolder(folder), question, "engine.onnx", tmp_path, lambda _share: None, Counting(folder / "engine.onnx"))
    assert sizes == [1] * 20


def test_a_bundle_of_more_outputs_than_a_device_holds_is_refused(folder, tmp_path, monkeypatch):
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("."):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    write_manifest(tmp_path, replace(BuildFolder(folder).manifest, bundle=None))
    record(tmp_path, MODEL, "engine.onnx", GOLDEN, MANIFEST)
    judge_build(BuildFolder(folder), Question(IMAGES, labelled=False, budget=BUDGET), "engine.onnx", tmp_path, lambda _s: None)
    record(tmp_path, MODEL, "engine.onnx", GOLDEN, MANIFEST, DRIFT, ANSWERS, PICTURES)
    monkeypatch.setattr(request_checks, "LARGEST_ANSWERS_BYTES", 1 << 13)
    with pytest.raises(DataError, match=r"too large[\s\S]*20 images[\s\S]*next: --images \d+"):
        make_bundle(BuildFolder(tmp_path), IMAGES, tmp_path / "b.ufovit", lambda _share: None)
    assert not (tmp_path / "b.ufovit").exists()


def test_outputs_that_must_be_in_memory_are_counted():
    logits, features = TensorInfo("logits", (-1, 1000), "float32"), TensorInfo("map", (-1, 64, 4096, 2048), "float32")
    each = 2 * 4 * 1000
    most = (1 << 31) // each
    request_checks.check_answers_fit((logits,), most, "--eval-images")
    with pytest.raises(DataError, match=rf"logits \[-1, 1000\][\s\S]*next: --eval-images {most}"):
        request_checks.check_answers_fit((logits,), most + 1, "--eval-images")
    with pytest.raises(DataError, match=r"1 images, 4\.3 GB[\s\S]*--outputs NAME"):
        request_checks.check_answers_fit((features,), 1, "--eval-images")


def test_the_drift_of_several_outputs_is_attributed(folder):
    def loaded(model, name):
        return LoadedGraph(GraphFile(name, "0" * 64), model)

    reference = loaded(two_output_graph(), MODEL)
    graphs = BuildGraphs(reference, reference, loaded(disturbed("patches", 1.5), "model.int8.onnx"))
    attribution = attribute_graphs(graphs, PHOTOS)
    before, after = (wanted(graph.model, PHOTOS) for graph in (reference, graphs.judged))
    scale = [1 / np.sqrt(np.mean(output**2)) for output in before[:2]]
    parts = [(a - b) * s for a, b, s in zip(before[:2], after[:2], scale, strict=True)]
    noise = sum(float((part.astype(np.float64) ** 2).sum()) for part in parts)
    signal = sum(float(((a * s).astype(np.float64) ** 2).sum()) for a, s in zip(before[:2], scale, strict=True))
    assert attribution.logits_db == pytest.approx(10 * np.log10(signal / noise), abs=0.1)
    worst = min((layer for layer in attribution.layers if layer.op_type == "Conv"), key=lambda layer: layer.introduced_db)
    assert worst.name == "patch"
    assert worst.introduced_db == pytest.approx(20 * np.log10(1 / 0.5), abs=0.2), "1.5 times is an error of half the signal"


def test_integers_alone_cannot_be_attributed():
    model = two_output_graph()
    del model.graph.output[:2]
    graph = LoadedGraph(GraphFile(MODEL, "0" * 64), model)
    with pytest.raises(InputError, match="no output of floats"):
        attribute_graphs(BuildGraphs(graph, graph, graph), PHOTOS)


def test_bench_and_camera_run_it(folder):
    opened = open_runner(BuildFolder(folder), "ort", threads=1)
    with opened.runner:
        assert opened.golden_images(2).dtype == np.uint8
        conditions = Conditions(Plan(1, 3), 1)
        report = measure_build(opened, (1, 2), conditions, monitor="no power", before=Resident(None, None), progress=Silent())
        assert report.build.image_shape == (HEIGHT, WIDTH, 3)
        assert [result.latency.runs for result in report.results] == [3, 3]
        results = []
        network = Network(opened.runner, opened.preprocess, task_of(opened.manifest), batch_min=2)
        frames = EveryFrameFeed(ListSource([np.repeat(PHOTOS[i], 3, axis=0) for i in range(3)], live=False))
        summary = Loop(network, frames, [results.append]).run()
    assert (summary.results, summary.not_finite) == (3, 0)
    for result in results:
        (expected,) = (wanted(disturbed(), PREPROCESS(result.frame.pixels)[None]),)
        for found, right in zip(result.outputs, expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


def test_a_bundle_carries_every_output_and_the_budget(folder, tmp_path):
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("."):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = replace(BuildFolder(folder).manifest, bundle=None)
    write_manifest(tmp_path, manifest)
    record(tmp_path, MODEL, "engine.onnx", GOLDEN, MANIFEST)
    judge_build(
        BuildFolder(folder), Question(IMAGES, labelled=False, budget=BUDGET), "engine.onnx", tmp_path, lambda _share: None
    )
    record(tmp_path, MODEL, "engine.onnx", GOLDEN, MANIFEST, DRIFT, ANSWERS, PICTURES)
    make_bundle(BuildFolder(tmp_path), IMAGES, tmp_path / "b.ufovit", lambda _share: None)
    bundle = verify_bundle(tmp_path / "b.ufovit")
    assert {"output_0.npy", "output_1.npy", "output_2.npy"} <= bundle.info.members.keys()
    assert not {"labels.npy", "logits.npy"} & bundle.info.members.keys()
    source = read_source(bundle)
    bundled = read_bundled_images(bundle, source)
    for found, expected in zip(bundled.outputs, wanted(two_output_graph(), PHOTOS), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not bundled.labelled
    assert bundled.golden.tensor.dtype == np.uint8
    assert budget_of(bundle) == BUDGET
    assert source.outputs == manifest.outputs
    np.testing.assert_array_equal(bundled.images.pixels(3), PHOTOS[3])
    assert onnx.load_model_from_string(bundle.read(MODEL)).graph.output[2].name == "index"
