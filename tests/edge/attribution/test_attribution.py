"""Oracles: pieces of the graphs run by ONNX Runtime one by one, layers computed by numpy, graphs quantized otherwise."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from attribution_graphs import FILE, MEAN, copied, db, edited, kinds, run, run_tapped, taken, with_judged
from onnx.utils import Extractor
from tiny_project import LABELS, build

from calib.artifact import write_artifact
from calib.calibration_table import load_table
from calib.errors import InputError
from calib.files import sha256_file
from calib.graph import index_graph, to_array
from calib.qdq_placement import QuantPlan, QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq
from edge.attribution.attribute import attribute_build, attribute_graphs
from edge.attribution.attribution_record import ATTRIBUTION_ARTIFACT, InputDrift
from edge.attribution.build_graphs import BuildGraphs, LoadedGraph, tap_judged_run
from edge.attribution.diagnosis import DriftEvidence, diagnose, summarize
from edge.attribution.layer_spans import find_spans, shared_spans
from edge.attribution.paired_images import compare_inputs
from edge.attribution.weight_errors import WeightError, compare_weights
from edge.images.labelled_images import open_images
from edge.images.preprocess import Preprocess
from edge.stability.finders.xnorm import find_sites
from engines.build_folder.file_names import ATTRIBUTION
from engines.build_folder.folder import BuildFolder

pytestmark = pytest.mark.slow

# ---- numbers


def made_from(model, end, ends):
    """The other ends that one end is computed from."""
    index = index_graph(model)
    wanted, seen, reads = [end], set(), set()
    while wanted:
        for name in model.graph.node[index.producers[wanted.pop()]].input:
            if name in ends or name == "image":
                reads.add(name)
            elif name in index.producers and name not in seen:
                seen.add(name)
                wanted.append(name)
    return sorted(reads)


def test_errors_are_those_of_the_pieces_run_alone(graphs, images, honest):
    few = taken(images, honest.images)
    ends = [layer.output for layer in honest.layers]
    assert {"logits", "blocks.1/Add_2_output", "cls_blocks.0.attn/MatMul_output"} <= set(ends)
    assert len(ends) == 51
    base, judged = graphs.base.model, graphs.judged.model
    x, y = ({"image": few, **run_tapped(model, few, ends)} for model in (base, judged))
    parts = {name: Extractor(model) for name, model in (("base", base), ("judged", judged))}

    def piece(side, end, feeds):
        model = {"base": base, "judged": judged}[side]
        return run(parts[side].extract_model(made_from(model, end, ends), [end]), feeds)[end]

    for layer in honest.layers:
        end = layer.output
        assert layer.introduced_db == pytest.approx(db(x[end], piece("judged", end, x)), abs=0.05), layer.name
        assert layer.accumulated_db == pytest.approx(db(x[end], y[end]), abs=1.5), layer.name
        inherited = db(x[end], piece("base", end, y))
        assert layer.inherited_db == pytest.approx(inherited, abs=1.5) or min(layer.inherited_db, inherited) > 110, layer.name


def test_parts_are_those_of_float64(graphs, images, honest):
    """Every linear layer with constant weights: output errors of quantized weights, of clipping, of rounding."""
    few = taken(images, honest.images)
    base, index = graphs.base.model, index_graph(graphs.base.model)
    judged = index_graph(graphs.judged.model)
    rows = {row.name: row for row in honest.layers}
    layers = [n for n in base.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in index.constants]
    x = run_tapped(base, few, [*(n.input[0] for n in layers), *(rows[n.name].output for n in layers)])
    checked = 0
    for node in layers:
        row, transposed = rows[node.name], node.op_type == "Gemm"
        scale = float(to_array(judged.constants[f"{node.input[0]}_scale"]))
        weight = to_array(index.constants[node.input[1]]).astype(np.float64)
        codes = to_array(judged.constants[f"{node.input[1]}_quantized"]).astype(np.float64)
        steps = to_array(judged.constants[f"{node.input[1]}_scale"]).astype(np.float64)
        seen = codes * (steps[:, None] if transposed else steps)
        weight, seen = (weight.T, seen.T) if transposed else (weight, seen)
        value, signal = x[node.input[0]].astype(np.float64), np.sum(np.float64(x[row.output]) ** 2)
        clipped = np.clip(value, -128 * scale, 127 * scale)
        rounded = np.clip(np.rint(value / scale), -128, 127) * scale

        def sqnr(error, signal=signal):
            return 10 * np.log10(signal / np.sum(error**2)) if np.any(error) else 300.0

        assert row.weights_db == pytest.approx(sqnr(value @ (seen - weight)), abs=0.05), node.name
        assert row.rounding_db == pytest.approx(sqnr((rounded - clipped) @ seen), abs=0.05), node.name
        assert row.clipping_db == pytest.approx(sqnr((clipped - value) @ seen), abs=0.05), node.name
        error = np.sum((weight - seen) ** 2)
        assert row.weight_sqnr_db == pytest.approx(10 * np.log10(np.sum(weight**2) / error), abs=1e-6)
        expected = np.sum(np.broadcast_to((steps[None] if transposed else steps) ** 2 / 12, weight.shape))
        assert row.weight_expected_db == pytest.approx(10 * np.log10(np.sum(weight**2) / expected), abs=1e-6)
        checked += 1
    assert checked == 25


def test_scales_against_others(graphs, images, honest):
    tensors = [a.tensor for a in honest.activations]
    x = run_tapped(graphs.base.model, taken(images, honest.trial_images), tensors)
    judged = index_graph(graphs.judged.model)
    for row in honest.activations:
        value = x[row.tensor].astype(np.float64)
        noise = {}
        for k in range(-4, 5):
            step = row.scale * 2 ** (k / 2)
            noise[k] = np.sum((np.clip(np.rint(value / step), -128, 127) * step - value) ** 2)
        best = min(noise, key=noise.get)
        assert row.scale == float(to_array(judged.constants[f"{row.tensor}_scale"]))
        assert row.excess_db == pytest.approx(10 * np.log10(noise[0] / noise[best]), abs=0.02)
        assert row.best_factor == pytest.approx(2 ** (best / 2))
        beyond = value - np.clip(value, -128 * row.scale, 127 * row.scale)
        assert row.clipping_share == pytest.approx(np.sum(beyond**2) / noise[0], abs=1e-3)
        assert row.clipped == pytest.approx(np.mean(beyond != 0), abs=1e-6)
        assert row.range_used == pytest.approx(np.abs(value).max() / row.scale / 127, rel=1e-5)
    readers = {a.tensor: a.readers for a in honest.activations}
    assert readers["blocks.1.norm1/LayerNormalization_output"] == tuple(f"blocks.1.attn.{n}/MatMul" for n in "qkv")


def in_float(graphs, built, names, *, but=False):
    """The build's float graph quantized without some layers, or (`but`) without all others."""
    table = load_table(built / "out" / "calibration.json")
    base = graphs.base.model
    plan = plan_quantization(base, QuantScheme(exclude=("stem.0/Conv", "stem.3/Conv")))
    return insert_qdq(base, table, QuantPlan(tuple(p for p in plan.points if (p.node in names) == but)))


def test_costs_and_gains_are_those_of_graphs_quantized_otherwise(graphs, built, images, honest):
    few = taken(images, 16)
    reference = run(graphs.base.model, {"image": few})["logits"]
    groups = {}
    for layer in honest.layers:
        if layer.isolated_db is not None:
            groups.setdefault((layer.isolated_db, layer.logits_share), []).append(layer.name)
    assert len(groups) == 33
    assert sum(share for _db, share in groups) == pytest.approx(1)
    for (isolated, _share), names in groups.items():
        alone = run(in_float(graphs, built, names, but=True), {"image": few})["logits"]
        assert isolated == pytest.approx(db(reference, alone), abs=0.3), names
    assert [t.share for t in honest.costliest[:-1]] == sorted((share for _db, share in groups), reverse=True)[:5]
    reference = run(graphs.base.model, {"image": images})["logits"]
    before = db(reference, run(graphs.judged.model, {"image": images})["logits"])
    for trial in honest.costliest:
        after = db(reference, run(in_float(graphs, built, trial.layers), {"image": images})["logits"])
        assert trial.before_db == pytest.approx(before, abs=0.5)
        assert trial.after_db == pytest.approx(after, abs=0.5)
        assert trial.gain_db == pytest.approx(trial.after_db - trial.before_db)
        assert trial.confirmed == (trial.gain_db > 2 * trial.uncertainty_db)
    assert honest.costliest[-1].confirmed
    assert honest.costliest[-1].gain_db > 2, "all together buy something"
    assert set(honest.costliest[-1].layers) == {name for t in honest.costliest[:-1] for name in t.layers}


def test_uncertainty_is_that_of_a_bootstrap(graphs, images, honest):
    trial = honest.costliest[-1]
    from edge.attribution.float_fallback import _uncertainty

    rng = np.random.default_rng(0)
    before, after = rng.gamma(2.0, size=80), rng.gamma(1.0, size=80)
    draws = rng.integers(0, 80, (4000, 80))
    spread = np.std(10 * np.log10(before[draws].sum(1) / after[draws].sum(1)))
    assert _uncertainty(before, after) == pytest.approx(spread, rel=0.1)
    assert 0 < trial.uncertainty_db < 2


# ---- what lies around the layers


def test_extra_outputs_change_no_logits(graphs, typed, images, honest):
    assert honest.taps.identical
    assert honest.taps.outputs > len(honest.layers)
    assert honest.taps.sqnr_db == honest.taps.as_run_db == 300
    assert attribute_graphs(typed, images[:8]).taps.as_run_db == 300
    before = graphs.judged.model.SerializeToString(deterministic=True)
    attribute_graphs(graphs, images[:8])
    assert graphs.judged.model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("also", [False, True])
def test_extra_outputs_that_change_logits_are_found(monkeypatch, graphs, images, also):
    """The control: a runtime that computes otherwise when more is asked of it, once only where it melts nodes, once anyhow."""
    from calib.ort_session import GraphSession, TappedGraph

    def spoil(call):
        def spoiled(self, batch):
            found = call(self, batch)
            more = len(found) > 1
            return {n: v + np.float32(0.01) if n == "logits" and more else v for n, v in found.items()}

        return spoiled

    monkeypatch.setattr(TappedGraph, "__call__", spoil(TappedGraph.__call__))
    if also:
        monkeypatch.setattr(GraphSession, "__call__", spoil(GraphSession.__call__))
    look, check = tap_judged_run(graphs.judged.model, ["blocks.0/Add_output"], images[:8])
    assert check.identical is not also
    assert (check.sqnr_db == 300) is not also
    assert (check.as_run_db == 300) is not also
    assert set(look(images[:4])) == {"blocks.0/Add_output", "logits"}


def test_the_float_graph_is_the_reference_up_to_powers_of_two(graphs, honest):
    assert graphs.base.file.file == "model.folded.onnx"
    drift = honest.float_graph
    assert (drift.logits_db, drift.worst_db, drift.first_layer) == (300, 300, "")
    folded = sum(len(site.factors) > 0 for site in find_sites(graphs.base.model))
    assert drift.scaled in range(2 * folded, 6 * folded + 1), "k, v and K^T V of every folded site, q where it is folded too"
    assert [stage.graph.file for stage in honest.stages] == [
        "model.onnx", "model.folded.onnx", "model.refined.onnx", "model.int8.onnx",
    ]  # fmt: skip
    assert honest.stages[-1].logits_db == honest.logits_db


def test_another_reference_is_named_with_the_first_layer_that_differs(graphs, images):
    other = edited(graphs.reference.model, ["blocks.1.ffn.0/MatMul.weight"], lambda v: v * 1.3)
    found = attribute_graphs(replace(graphs, reference=LoadedGraph(FILE, other)), images)
    assert kinds(found) == ["float_graph"]
    assert found.culprits[0].where == "blocks.1.ffn.0/MatMul"
    assert "not the reference's" in found.sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x + MEAN, ("another mean or deviation", "channel 0 is 1.000 x +0.200", "channel 1 is 1.000 x -0.100")),
        (lambda x: x * np.float32(1.1), ("another mean or deviation", "channel 2 is 1.100 x +0.000")),
        (lambda x: x[:, ::-1], ("order 2, 1, 0", "BGR")),
        (lambda x: x[:, ::-1] + MEAN, ("order 2, 1, 0", "channel 2 is 1.000 x +0.400")),
        (lambda x: x[::-1], ("other images",)),
        (lambda x: np.roll(x, 1, axis=3), ("other images, or resized otherwise",)),
    ],
)
def test_how_the_input_differs(tiny_images, change, said):
    found = compare_inputs(tiny_images, np.ascontiguousarray(change(tiny_images)))
    assert all(text in found.explanation for text in said)
    assert found.sqnr_db < 40


def test_the_same_input_needs_no_explanation(tiny_images):
    assert compare_inputs(tiny_images, tiny_images.copy()) == InputDrift(300, 0, "")
    nearly = tiny_images + np.float32(2e-5)
    assert compare_inputs(tiny_images, nearly).explanation == ""
    grey = np.repeat(tiny_images[:, :1], 3, axis=1)
    assert compare_inputs(grey, np.ascontiguousarray(grey[:, ::-1])).explanation == "", "BGR of a grey picture is the same"
    assert "another mean" in compare_inputs(grey, grey + MEAN).explanation


# ---- rules that no graph here breaks


@pytest.fixture(scope="module")
def evidence(graphs, honest):
    weights = compare_weights(graphs.base.model, graphs.judged.model, find_spans(graphs.base.model))
    return lambda **changes: seen(honest, **{"weights": weights, **changes})


def seen(honest, **changes):
    return DriftEvidence(**{
        "typed": False, "logits_db": honest.logits_db, "input": honest.input, "float_graph": honest.float_graph,
        "taps": honest.taps, "layers": honest.layers, "activations": honest.activations, "not_finite": (), "rewired": {},
        **changes,
    })  # fmt: skip


def test_a_runtime_that_computes_otherwise(evidence, honest):
    assert diagnose(evidence()) == ()
    near, far = (replace(honest.taps, as_run_db=honest.logits_db + more) for more in (-1, -10))
    assert diagnose(evidence(taps=near)) == ()
    assert [c.kind for c in diagnose(evidence(taps=far))] == ["runtime"]


def test_an_outlier_among_its_peers(evidence, honest):
    """Twelve equal layers, one of them worse: named from 12 dB on, where they scatter from 5 deviations on."""
    row = next(r for r in honest.layers if r.name == "blocks.0.ffn.2/MatMul")
    rng = np.random.default_rng(0)

    def named(scatter_db, worse_db):
        rows = [
            replace(row, name=f"blocks.{i}.ffn.2/MatMul", introduced_db=45 + scatter_db * float(rng.normal()), rounding_db=46.0)
            for i in range(11)
        ]
        bad = replace(row, name="blocks.11.ffn.2/MatMul", introduced_db=45 - worse_db, rounding_db=45.5 - worse_db)
        sound = {r.name: WeightError(45.0, 45.0, 0, 44.0, ()) for r in (*rows, bad)}
        return [(c.kind, c.where) for c in diagnose(evidence(layers=(*rows, bad), weights=sound))]

    assert named(0.5, 14) == [("outlier", "blocks.11.ffn.2/MatMul")]
    assert named(0.5, 10) == []
    assert named(4.0, 14) == []
    assert named(0.5, 26) == [("outlier", "blocks.11.ffn.2/MatMul")]


@pytest.mark.parametrize(("excess", "plain", "refined"), [(8, [], []), (20, ["weights"], []), (30, ["weights"], ["weights"])])
def test_weights_that_refinement_rounded_may_err_more(evidence, honest, excess, plain, refined):
    row = next(r for r in honest.layers if r.name == "blocks.0.ffn.2/MatMul")
    bad = replace(row, weights_db=46.0 - excess, introduced_db=46.0 - excess)
    rows = tuple(bad if r is row else r for r in honest.layers)
    weights = {bad.name: WeightError(46.0 - excess, 46.0, 0, 44.0 - excess, ())}
    for names, expected in ((frozenset(), plain), (frozenset({bad.name}), refined)):
        found = diagnose(evidence(layers=rows, weights=weights, refined=names))
        assert [c.kind for c in found if c.where == bad.name and c.kind != "outlier"] == expected


def test_sentences(evidence):
    shares = {f"layer{i}": 0.01 for i in range(100)}
    assert "spread evenly over 100 groups of layers, at most 1% each" in summarize((), 40.0, shares)
    assert "5 of 100 groups of layers make 54% of that noise: layer0 50%" in summarize((), 40.0, {**shares, "layer0": 0.5})
    assert summarize((), 300.0, {}) == "No difference: the judged graph gives the reference's logits to the last bit."
    few = diagnose(evidence(rewired={f"layer{i}": "reads nothing" for i in range(5)}))
    assert summarize(few, 10.0, {}).endswith("(and 2 more).")


# ---- units, folder, artifact


def test_units_of_a_graph_that_lacks_some(graphs, images):
    model = copied(graphs.judged.model)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = "renamed" if name == "blocks.0.attn.q/Add_output" else name
    units, lost = shared_spans(graphs.base.model, model)
    assert [n.node for n in lost] == ["blocks.0.attn.q/MatMul"]
    product = next(u for u in units if u.name == "blocks.0.attn/MatMul_1")
    assert "stem.9/Conv_output" in product.reads, "the span after it reaches back over it"
    found = attribute_graphs(with_judged(graphs, model), images)
    assert found.not_compared == lost
    assert found.culprits == ()
    assert len(found.layers) == len(find_spans(graphs.base.model)) - 1


def test_a_folder_and_its_artifact(project, tiny_size):
    shown = []
    out = project / "out"
    before = {p.name: sha256_file(p) for p in out.iterdir() if p.is_file()}
    found = attribute_build(BuildFolder(out), open_images(project / "test", LABELS), shown.append)
    assert {p.name: sha256_file(p) for p in out.iterdir() if p.is_file() and p.name != ATTRIBUTION} == before
    assert BuildFolder(out).read(ATTRIBUTION_ARTIFACT) == found
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
    assert (found.reference.sha256, found.judged.sha256) == tuple(
        sha256_file(out / f) for f in ("model.onnx", "model.int8.onnx")
    )
    assert (found.images, found.trial_images) == (32, 80)
    again = attribute_build(BuildFolder(out), open_images(project / "test", LABELS), lambda _share: None)
    assert again == found, "the same every time"
    write_artifact(out / "copy.json", found)
    assert (out / "copy.json").read_bytes() == (out / ATTRIBUTION).read_bytes()


def test_a_manifest_that_prepares_images_otherwise(project, tiny_size):
    path = project / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["preprocess"]["mean"] = [0.4, 0.5, 0.5]
    fields = {name: value for name, value in manifest["preprocess"].items() if name != "sha256"}
    manifest["preprocess"]["sha256"] = Preprocess.from_json(fields).sha256
    path.write_text(json.dumps(manifest))
    (project / "out" / "steps.json").unlink()
    found = attribute_build(BuildFolder(project / "out"), open_images(project / "test", LABELS), lambda _share: None)
    assert kinds(found) == ["input"]
    assert "channel 0 is 1.000 x +0.400" in found.sentence


def test_an_fp32_build_does_not_differ(project, tiny_size, images):
    shutil.rmtree(project / "out")
    assert build(project, precision="fp32") == 0
    found = attribute_build(BuildFolder(project / "out"), open_images(project / "test", LABELS), lambda _share: None)
    assert found.sentence.startswith("No difference")
    assert found.costliest == ()
    assert min(row.introduced_db for row in found.layers) > 110, "FP32 kernels, one layer at a time"


def test_refusals(graphs, images, tmp_path, project):
    with pytest.raises(InputError, match="no FP32 reference graph"):
        attribute_build(BuildFolder(tmp_path), open_images(project / "test", LABELS), lambda _share: None)
    with pytest.raises(InputError, match="did not get the same images"):
        attribute_graphs(graphs, images, images[:3])
    with pytest.raises(InputError, match="did not get the same images"):
        attribute_graphs(graphs, images[:0])
    other = copied(graphs.judged.model)
    other.graph.output[0].name = "answers"
    with pytest.raises(InputError, match=r"not of one network[\s\S]*planted.onnx: image -> answers"):
        attribute_graphs(with_judged(graphs, other), images)
    infinite = edited(graphs.reference.model, ["blocks.0.ffn.2.bias"], lambda v: v * np.float32(np.inf))
    loaded = LoadedGraph(FILE, infinite)
    with pytest.raises(InputError, match="FP32 network itself"):
        attribute_graphs(BuildGraphs(loaded, loaded, graphs.judged), images)
    with pytest.raises(InputError, match="images"):
        attribute_graphs(graphs, images * np.float32(np.nan))
    channels = edited(graphs.judged.model, ["stem.8/Gelu_output_scale"], lambda v: np.full(48, v))
    with pytest.raises(InputError, match="per tensor"):
        attribute_graphs(with_judged(graphs, channels), images)
