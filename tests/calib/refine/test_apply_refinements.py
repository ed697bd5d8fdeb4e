"""Oracle: the quantized graph against the float graph that came, in ONNX Runtime, on images that no refinement has seen."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.calibration_table import CalibrationTable, TensorScale
from calib.collect import CollectConfig, collect_table
from calib.errors import DataError, UsageError
from calib.graph import index_graph
from calib.lint import lint_graph
from calib.metrics import sqnr_db
from calib.qdq_placement import QuantPlan, QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq, quantize_weight, read_qdq, serialize
from calib.refine.apply_refinements import refine_graph
from calib.refine.effort import EFFORTS, Effort, resolve_effort
from calib.refine.paired_forward import walk

SCHEME = QuantScheme()


def network(make_model, seed=0, weights_in_nodes=False):
    """Gelu, Relu and a LayerNormalization with two wide channels before layers with and without bias or name."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])).astype(np.float32)

    n = h.make_node
    wide = np.ones(16, np.float32)
    wide[[3, 9]] = [12, 20]
    nodes = [
        n("Conv", ["image", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1], strides=[2, 2]),
        n("Gelu", ["c0"], ["g0"], name="gelu0"),
        n("Conv", ["g0", "w1", "b1"], ["c1"], name="depthwise", group=16, pads=[1, 1, 1, 1]),
        n("Relu", ["c1"], ["r1"], name="relu"),
        n("Conv", ["r1", "w2"], ["c2"], name="pointwise"),
        n("Reshape", ["c2", "shape"], ["f"], name="flatten"),
        n("Transpose", ["f"], ["x"], name="to_tokens", perm=[0, 2, 1]),
        n("LayerNormalization", ["x", "s", "o"], ["ln"], name="norm"),
        n("MatMul", ["ln", "w3"], ["m3"]),
        n("Gelu", ["m3"], ["g3"], name="gelu3"),
        n("MatMul", ["g3", "w4"], ["m4"], name="fc2"),
        n("Add", ["m4", "b4"], ["a4"], name="fc2/bias"),
        n("Add", ["x", "a4"], ["res"], name="residual"),
        n("ReduceMean", ["res", "axis"], ["pooled"], name="pool", keepdims=0),
        n("Gemm", ["pooled", "w5", "b5"], ["logits"], name="head", transB=1),
    ]
    constants = {
        "w0": 2 * draw(16, 3, 3, 3),
        "b0": np.zeros(16, np.float32),
        "w1": draw(16, 1, 3, 3) * wide.reshape(-1, 1, 1, 1),
        "b1": draw(16),
        "w2": draw(16, 16, 1, 1),
        "shape": np.array([0, 16, 16], np.int64),
        "s": wide,
        "o": draw(16),
        "w3": draw(16, 32),
        "w4": draw(32, 16),
        "b4": draw(16),
        "axis": np.array([1], np.int64),
        "w5": draw(10, 16),
        "b5": draw(10),
    }
    if weights_in_nodes:
        held = [name for name in constants if name.startswith("w")]
        nodes[:0] = [n("Constant", [], [name], value=numpy_helper.from_array(constants.pop(name))) for name in held]
    return make_model(nodes, constants, [("image", T.FLOAT, ["batch", 3, 8, 8])], [("logits", T.FLOAT, ["batch", 10])])


def pictures(seed, count=256):
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def batches():
    return np.split(pictures(1), 8)


def run(model, images):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def quantized(refined, tmp_path, scheme=SCHEME):
    """The Q/DQ graph: scales of the search where there are any, of the method elsewhere."""
    path = tmp_path / "refined.onnx"
    path.write_bytes(serialize(refined.model))
    plan = plan_quantization(refined.model, scheme)
    table = collect_table(path, batches(), plan, data_sha256="d", config=CollectConfig())
    settled = {t: TensorScale(s * 127, s, "search") for t, s in refined.scales.items()}
    return insert_qdq(refined.model, CalibrationTable("g", "d", 256, "mse", {**table.tensors, **settled}), plan)


def rounded(refined):
    """Layers whose weights were rounded to second order."""
    return {name for name, node in index_graph(refined.model).nodes.items() if node.input[1:] and "/rounded" in node.input[1]}


def quality(model, used, tmp_path, images=None):
    images = pictures(2) if images is None else images
    return sqnr_db(
        run(model, images), run(quantized(refine_graph(model, SCHEME, batches(), used, images=256), tmp_path), images)
    )


def test_more_effort_gives_more_decibels_on_other_images(make_model, tmp_path):
    models = [network(make_model, seed) for seed in range(3)]
    found = np.array([[quality(m, resolve_effort(name), tmp_path) for name in ("fast", "balanced", "best")] for m in models])
    assert np.all((found[:, 0] > 15) & (found[:, 0] < 35))
    assert np.all(np.diff(found, axis=1) > 0), found
    balanced, best = np.diff(found, axis=1).mean(axis=0)
    assert balanced > 4
    assert best > 1


CORRECTED = Effort(search=True, smooth=True, bias=True)  # the search counts on the bias to take mean errors back
REFINEMENTS = {
    "scales, factors and biases": (Effort(), CORRECTED),
    "shifts": (CORRECTED, replace(CORRECTED, shift=True, insert=True)),
    "biases": (Effort(search=True, smooth=True, shift=True, insert=True), replace(CORRECTED, shift=True, insert=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFINEMENTS)
def test_every_refinement_is_worth_its_while(make_model, tmp_path, kind):
    less, more = REFINEMENTS[kind]
    gains = [quality(m, more, tmp_path) - quality(m, less, tmp_path) for m in (network(make_model, seed) for seed in range(3))]
    assert np.mean(gains) > 1, gains


def test_fast_leaves_the_graph_alone(make_model):
    def unread():
        pytest.fail("no image is looked at")
        yield

    model = network(make_model)
    refined = refine_graph(model, SCHEME, unread(), resolve_effort("fast"), images=256)
    assert refined.model is model
    assert (refined.scales, refined.choices) == ({}, {})


@pytest.mark.parametrize("name", ["balanced", "best"])
def test_equal_inputs_give_equal_bytes(make_model, name):
    model = network(make_model)
    before = serialize(model)
    first, second = (refine_graph(model, SCHEME, batches(), resolve_effort(name), images=256) for _ in range(2))
    assert serialize(first.model) == serialize(second.model)
    assert first.scales == second.scales
    assert serialize(model) == before, "the graph that came is left alone"
    other = refine_graph(model, SCHEME, [pictures(3)], resolve_effort(name), images=256)
    assert serialize(other.model) != serialize(first.model), "the control: other images give another graph"


@pytest.mark.parametrize("name", ["balanced", "best"])
def test_the_interface_and_the_names_stay(make_model, tmp_path, name):
    model = network(make_model)
    refined = refine_graph(model, SCHEME, batches(), resolve_effort(name), images=256)
    onnx.checker.check_model(refined.model, full_check=True)
    assert refined.model.graph.input == model.graph.input
    assert refined.model.graph.output == model.graph.output
    assert refined.model.opset_import == model.opset_import
    assert refined.model.ir_version == model.ir_version
    assert plan_quantization(refined.model).nodes == plan_quantization(model).nodes, "also that of the node without a name"
    old, new = ({o for n in m.graph.node for o in n.output} for m in (model, refined.model))
    assert old <= new
    assert lint_graph(quantized(refined, tmp_path)) == ()
    assert rounded(refined) == set(plan_quantization(model).nodes)
    inserted = set(refined.choices) - set(refined.scales)
    assert (name == "best") == bool(inserted)
    extra = len(new) - len(old)
    assert extra == 1 if name == "balanced" else extra > len(inserted), "the bias of the layer that had none"


@pytest.mark.parametrize("name", ["balanced", "best"])
def test_the_refined_graph_is_still_the_network(make_model, name):
    """Its weights lie on a grid of 255 levels, no more than that has changed; the shifts and factors cancel."""
    model = network(make_model)
    assert (
        sqnr_db(
            run(model, pictures(2)),
            run(refine_graph(model, SCHEME, batches(), resolve_effort(name), images=256).model, pictures(2)),
        )
        > 30
    )
    used = Effort(search=True, smooth=True, shift=True, insert=True)
    moved = refine_graph(model, SCHEME, batches(), used, images=256)
    assert sqnr_db(run(model, pictures(2)), run(moved.model, pictures(2))) > 100
    assert not all(choice.plain for choice in moved.choices.values()), "something was moved"


def test_the_scales_that_were_settled_are_those_in_the_graph(make_model, tmp_path):
    refined = refine_graph(network(make_model), SCHEME, batches(), resolve_effort("best"), images=256)
    found = read_qdq(quantized(refined, tmp_path))
    plan = plan_quantization(refined.model)
    assert set(refined.scales) == set(plan.activations), "every activation of this network feeds a linear layer"
    for tensor, scale in refined.scales.items():
        assert found[tensor].scale == (scale,)
        assert float(np.float16(scale)) == scale


def test_rounded_weights_lie_on_their_grid(make_model):
    refined = refine_graph(network(make_model), SCHEME, batches(), resolve_effort("balanced"), images=256)
    constants = index_graph(refined.model).constants
    weights = [p for p in plan_quantization(refined.model).points if p.kind == "weight"]
    assert len(weights) == 6
    for point in weights:
        weight = numpy_helper.to_array(constants[point.tensor])
        values, scales = quantize_weight(weight, point.axis, point.tensor)
        shape = [-1 if a == point.axis else 1 for a in range(weight.ndim)]
        np.testing.assert_array_equal(values.astype(np.float32) * scales.reshape(shape), weight)


def one_layer(make_model):
    weight = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    nodes = [h.make_node("Gelu", ["image"], ["g"]), h.make_node("MatMul", ["g", "w"], ["y"])]
    return make_model(nodes, {"w": weight}, [("image", T.FLOAT, ["n", 20, 6])], [("y", T.FLOAT, ["n", 20, 4])])


def test_the_mean_of_every_output_is_the_float_graphs(make_model):
    """An outlier's scale rounds Gelu's many small values to zero: that shifts the mean, and the bias takes it back."""
    model = one_layer(make_model)
    images = np.random.default_rng(4).normal(size=(48, 20, 6)).astype(np.float32)
    images[0, 0] = 40
    errors = {}
    for corrected in (False, True):
        refined = refine_graph(
            model, SCHEME, np.split(images, 4), Effort(search=True, rounding=False, bias=corrected), images=48
        )
        table = CalibrationTable("g", "d", 48, "mse", {t: TensorScale(s * 127, s, "search") for t, s in refined.scales.items()})
        made = insert_qdq(refined.model, table, plan_quantization(refined.model))
        errors[corrected] = (run(made, images) - run(model, images)).mean(axis=(0, 1), dtype=np.float64)
    assert np.abs(errors[True]).max() < 1e-5
    assert np.abs(errors[False]).max() > 1e-3, "the control: there was something to correct"


def chain(make_model, seed=0):
    """Seven layers, one after the other; heavy tails before each make quantization shift the means."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return (1.5 * random.normal(size=shape) / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])).astype(
            np.float32
        )

    n = h.make_node
    nodes = [
        n("Conv", ["image", "w0", "b0"], ["c0"], name="conv0", pads=[1, 1, 1, 1], strides=[2, 2]),
        n("Gelu", ["c0"], ["g0"], name="gelu0"),
        n("Conv", ["g0", "w1"], ["c1"], name="conv1"),
        n("Gelu", ["c1"], ["g1"], name="gelu1"),
        n("Conv", ["g1", "w2", "b2"], ["c2"], name="conv2", group=12, pads=[1, 1, 1, 1]),
        n("Gelu", ["c2"], ["g2"], name="gelu2"),
        n("Reshape", ["g2", "shape"], ["f"], name="flatten"),
        n("Transpose", ["f"], ["x"], name="tokens", perm=[0, 2, 1]),
        n("MatMul", ["x", "w3"], ["m3"], name="fc3"),
        n("Add", ["m3", "b3"], ["a3"], name="fc3/bias"),
        n("Gelu", ["a3"], ["g3"], name="gelu3"),
        n("MatMul", ["g3", "w4"], ["m4"], name="fc4"),
        n("Gelu", ["m4"], ["g4"], name="gelu4"),
        n("MatMul", ["g4", "w5"], ["m5"], name="fc5"),
        n("Gelu", ["m5"], ["g5"], name="gelu5"),
        n("ReduceMean", ["g5", "axis"], ["pooled"], name="pool", keepdims=0),
        n("Gemm", ["pooled", "w6", "b6"], ["logits"], name="head", transB=1),
    ]
    constants = {
        "w0": draw(12, 3, 3, 3),
        "b0": np.zeros(12, np.float32),
        "w1": draw(12, 12, 1, 1),
        "w2": draw(12, 1, 3, 3),
        "b2": np.zeros(12, np.float32),
        "shape": np.array([0, 12, 16], np.int64),
        "w3": draw(12, 24),
        "b3": np.zeros(24, np.float32),
        "w4": draw(24, 16),
        "w5": draw(16, 16),
        "axis": np.array([1], np.int64),
        "w6": draw(10, 16),
        "b6": np.zeros(10, np.float32),
    }
    return make_model(nodes, constants, [("image", T.FLOAT, ["n", 3, 8, 8])], [("logits", T.FLOAT, ["n", 10])])


def tailed(seed, count=256):
    return np.random.default_rng(seed).standard_t(3, size=(count, 3, 8, 8)).astype(np.float32)


def on_its_scales(refined):
    table = CalibrationTable("g", "d", 256, "mse", {t: TensorScale(s * 127, s, "search") for t, s in refined.scales.items()})
    return insert_qdq(refined.model, table, plan_quantization(refined.model))


LAYERS = ("c0", "c1", "c2", "a3", "m4", "m5", "logits")
NO_MEAN = 5e-5
"""What may be left of a mean error: FP32 sums, and a few clipped values, which QuantizeLinear lets reach -128."""


def judged(model, refined, images):
    """Per layer the largest mean error of a channel, relative to the spread of the outputs; and the logits' SQNR."""
    exact, found = ({t: run(tapped(m, t), images) for t in LAYERS} for m in (model, on_its_scales(refined)))
    errors = []
    for t in LAYERS:
        others = tuple(a for a in range(exact[t].ndim) if a != (1 if exact[t].ndim == 4 else exact[t].ndim - 1))
        errors.append(np.abs((found[t] - exact[t]).mean(axis=others, dtype=np.float64)).max() / exact[t].std())
    return np.array(errors), sqnr_db(exact["logits"], found["logits"])


def tapped(model, tensor):
    """The same graph, which returns this tensor alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return copy


def corrected_blindly(scales):
    """A walk that does not see the corrections made so far: each layer corrects all errors before it once more."""

    def blind(exact, tensors, batches, quantize, threads):
        plan = plan_quantization(exact)
        table = CalibrationTable("g", "d", 256, "mse", {t: TensorScale(s * 127, s, "search") for t, s in scales.items()})

        def uncorrected(segment):
            if quantize(segment) is None:
                return None
            return insert_qdq(segment.model, table, QuantPlan(tuple(p for p in plan.points if p.node in segment.nodes)))

        return walk(exact, tensors, batches, uncorrected, threads)

    return blind


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_corrected_once_along_a_chain(make_model, monkeypatch, seed):
    """Of every layer, not of the last one alone, the mean error is gone: none is left over and none is taken back twice."""
    model, images = chain(make_model, seed), tailed(seed)
    used = Effort(search=True)

    def refined(effort):
        return refine_graph(model, SCHEME, np.split(images, 8), effort, images=256)

    plain, corrected = refined(used), refined(replace(used, bias=True))
    assert plain.scales == corrected.scales
    assert len(plain.scales) == 7
    before, without = judged(model, plain, images)
    after, decibels = judged(model, corrected, images)
    assert np.all(before > 10 * NO_MEAN), "there was something to correct everywhere"
    assert np.all(after < NO_MEAN), after
    assert decibels > without
    monkeypatch.setattr("calib.refine.apply_refinements.walk", corrected_blindly(plain.scales))
    errors, spoiled = judged(model, refined(replace(used, bias=True)), images)  # the control
    assert errors[0] < NO_MEAN, "before the first layer there is nothing to correct twice"
    assert np.all(errors[1:] > 10 * NO_MEAN)
    assert spoiled < decibels


@pytest.mark.parametrize("seed", range(3))
def test_after_rounding_the_mean_errors_are_corrected_too(make_model, seed):
    model, images = chain(make_model, seed), tailed(seed)
    used = Effort(search=True, rounding=True)
    plain, corrected = (
        refine_graph(model, SCHEME, np.split(images, 8), u, images=256) for u in (used, replace(used, bias=True))
    )
    before, after = (judged(model, refined, images)[0] for refined in (plain, corrected))
    assert np.all(after < NO_MEAN), after
    assert np.all(before > 10 * NO_MEAN), "the control: rounding leaves some"


def clipped_network(make_model, between):
    """Conv -> Clip(0, 6) or Relu -> Conv, twice, the latter Conv padded the second time; one channel is wide."""
    random = np.random.default_rng(8)

    def draw(*shape):
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def activation(x, y):
        bounds = ["low", "high"] if between == "Clip" else []
        return h.make_node(between, [x, *bounds], [y], name=f"{between}/{y}")

    nodes = [
        h.make_node("Conv", ["image", "w0", "b0"], ["c0"], name="conv0"),
        activation("c0", "t0"),
        h.make_node("Conv", ["t0", "w1", "b1"], ["c1"], name="conv1"),
        activation("c1", "t1"),
        h.make_node("Conv", ["t1", "w2"], ["logits"], name="conv2", pads=[1, 1, 1, 1]),
    ]
    wide = np.ones((16, 1, 1, 1), np.float32)
    wide[5] = 8
    constants = {
        "w0": draw(16, 3, 3, 3) / 4 * wide,
        "b0": np.full(16, 0.3, np.float32),
        "w1": draw(16, 16, 1, 1) / 4 * wide,
        "b1": np.full(16, 0.3, np.float32),
        "w2": draw(4, 16, 3, 3),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    used = constants if between == "Clip" else {k: v for k, v in constants.items() if k not in ("low", "high")}
    return make_model(nodes, used, [("image", T.FLOAT, ["n", 3, 8, 8])], [("logits", T.FLOAT, ["n", 4, 6, 6])])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["balanced", "best"])
def test_after_a_clip_there_are_shifts_and_no_factors(make_model, tmp_path, name):
    model = clipped_network(make_model, "Clip")
    refined = refine_graph(model, SCHEME, batches(), resolve_effort(name), images=256)
    choices = refined.choices
    assert np.all(choices["t0"].factors == 1)
    assert np.all(choices["t1"].factors == 1)
    assert choices["t0"].zero > 60, "from 0 to 6: the negative levels would lie idle"
    assert (choices["t1"].zero == 0) == (name == "balanced"), "a padded Conv would need a map"
    assert "t0" in refined.scales, "shifted where it stands"
    assert {"t0", "t1"} <= set(refined.scales), "no node was inserted after them"
    assert lint_graph(quantized(refined, tmp_path)) == ()
    unshifted = replace(resolve_effort("balanced"), shift=False)
    assert quality(model, resolve_effort(name), tmp_path) > quality(model, unshifted, tmp_path) + 1
    relu = refine_graph(clipped_network(make_model, "Relu"), SCHEME, batches(), resolve_effort(name), images=256).choices
    assert relu["t0"].factors.max() >= 2, "the control: after a Relu the narrow channels are raised to the wide one"
    assert relu["t1"].factors.max() >= 2


def test_weights_in_constant_nodes_are_weights(make_model):
    held, apart = (network(make_model, weights_in_nodes=flag) for flag in (False, True))
    first, second = (refine_graph(model, SCHEME, batches(), resolve_effort("balanced"), images=256) for model in (held, apart))
    assert first.scales == second.scales
    np.testing.assert_array_equal(run(first.model, pictures(2)), run(second.model, pictures(2)))
    assert not any(n.op_type == "Constant" for n in second.model.graph.node), "the old weights are not carried along"


def test_what_is_excluded_stays_in_float(make_model, tmp_path):
    model = network(make_model)
    for name, weight in (("depthwise", "w1"), ("m3", "w3")):
        scheme = QuantScheme(exclude=(name,))
        refined = refine_graph(model, scheme, batches(), resolve_effort("balanced"), images=256)
        assert name not in rounded(refined)
        made = quantized(refined, tmp_path, scheme)
        assert lint_graph(made) == ()
        index = index_graph(made)
        node = made.graph.node[index.names.index(name)]
        assert numpy_helper.to_array(index.constants[node.input[1]]).dtype == np.float32
        old, new = (
            numpy_helper.to_array(index_graph(m).constants[n.input[1]])
            for m, n in ((model, next(n for n in model.graph.node if weight in n.input)), (refined.model, node))
        )
        ratio = new / old  # a Relu after it may have had factors, powers of two, moved into it
        np.testing.assert_array_equal(np.exp2(np.round(np.log2(ratio))), ratio)
        assert sqnr_db(run(model, pictures(2)), run(made, pictures(2))) > 25


def test_a_graph_without_linear_layers_on_activations_stays_as_it_is(make_model):
    nodes = [h.make_node("Transpose", ["image"], ["t"], perm=[0, 2, 1]), h.make_node("MatMul", ["image", "t"], ["y"])]
    model = make_model(nodes, {}, [("image", T.FLOAT, ["n", 4, 5])], [("y", T.FLOAT, ["n", 4, 4])])
    refined = refine_graph(model, SCHEME, [np.ones((32, 4, 5), np.float32)], resolve_effort("best"), images=32)
    assert refined.scales == {}
    assert serialize(refined.model) == serialize(model)


def test_a_constant_tensor_is_left_to_the_method(make_model):
    refined = refine_graph(
        network(make_model), SCHEME, [np.ones((32, 3, 8, 8), np.float32)], resolve_effort("balanced"), images=32
    )
    assert "image" not in refined.scales
    assert "g0" in refined.scales, "the border makes it vary"


def test_progress_rises(make_model):
    for name in ("balanced", "best"):
        seen = []
        refine_graph(network(make_model), SCHEME, batches(), resolve_effort(name), images=256, progress=seen.append)
        assert seen == sorted(seen)
        assert 0 < seen[0] < seen[-1] == pytest.approx(1)


def test_images_that_do_not_fit_are_refused(make_model):
    model = network(make_model)
    spoiled = pictures(1)
    spoiled[40, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        refine_graph(model, SCHEME, [spoiled], resolve_effort("balanced"), images=256)
    with pytest.raises(DataError, match="does not take these images"):
        refine_graph(model, SCHEME, [pictures(1)[:, :2]], resolve_effort("balanced"), images=256)
    with pytest.raises(DataError, match="not a batch of images"):
        refine_graph(model, SCHEME, [pictures(1).astype(np.float64)], resolve_effort("balanced"), images=256)


def test_efforts_are_known_by_name():
    assert EFFORTS["fast"].names == ()
    assert resolve_effort("balanced").names == ("search", "smooth", "shift", "rounding", "bias")
    assert resolve_effort("best").names == ("search", "smooth", "shift", "insert", "rounding", "bias")
    with pytest.raises(UsageError, match=r"unknown effort 'fastest'[\s\S]*fast, balanced, best"):
        resolve_effort("fastest")
