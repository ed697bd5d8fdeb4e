"""Oracle: the graph as it was, in ONNX Runtime without any graph optimization."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.graph import index_graph
from calib.qdq_placement import plan_quantization
from calib.refine import smoothquant
from calib.refine.linear_consumers import find_readers
from calib.refine.scale_search import ScaleChoice
from calib.refine.smoothquant import Migration

FACTORS = np.array([1, 2, 0.5, 16, 1, 0.25])
SHIFTED = 0.05
ROWS, IMAGE = ("x", T.FLOAT, ["n", 3, 6]), ("x", T.FLOAT, ["n", 6, 7, 5])


def draw(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(np.float32)


def run(model, values=None):
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, strict_mode=True), full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    return session.run(None, {"x": draw(*(d if isinstance(d, int) else 4 for d in shape)) if values is None else values})


def choice(factors=None, zero=0.0):
    return ScaleChoice(SHIFTED, np.ones(6) if factors is None else np.asarray(factors, float), zero, 0.0)


def moved(model, choices):
    """The graph after these moves, and the tensors that are quantized in the end."""
    migration = Migration(model, find_readers(model, plan_quantization(model)))
    ends = {tensor: migration.move(tensor, made) for tensor, made in choices.items()}
    return migration.finish(), ends


def conv(make, *, before=(), tensor="x", outputs=("y",), constants=None, more=(), source=IMAGE, bias=True, **attributes):
    """Something in front, a Conv that reads `tensor`, and something more."""
    group = attributes.get("group", 1)
    out = 6 if group == 6 else 4
    weight = draw(out, 6 // group, 3, 3)
    inputs = [tensor, "w", "b"] if bias else [tensor, "w"]
    node = h.make_node("Conv", inputs, ["y"], name="reader", **attributes)
    held = {"w": weight, **({"b": draw(out)} if bias else {}), **(constants or {})}
    return make([*before, node, *more], held, [source], [(name, T.FLOAT, None) for name in outputs])


def normalized(make, op_type, more=(), outputs=("y",)):
    """A normalization before two MatMuls, one of them with a bias, or of a padded Conv."""
    constants = {
        "s": np.abs(draw(6)) + 0.5,
        "o": draw(6, seed=1),
        "mean": draw(6, seed=2),
        "var": np.abs(draw(6, seed=3)) + 0.5,
    }
    if op_type == "BatchNormalization":
        norm = h.make_node(op_type, ["x", "s", "o", "mean", "var"], ["t"], name="norm")
        return conv(make, before=[norm], tensor="t", constants=constants, more=more, outputs=outputs, pads=[1, 1, 1, 1])
    nodes = [
        h.make_node(op_type, ["x", "s", "o"], ["t"], name="norm"),
        h.make_node("MatMul", ["t", "w1"], ["m"], name="first"),
        h.make_node("Add", ["m", "b1"], ["y"], name="bias"),
        h.make_node("MatMul", ["t", "w2"], ["z"]),
        *more,
    ]
    held = {"s": constants["s"], "o": constants["o"], "w1": draw(6, 4), "b1": draw(4), "w2": draw(6, 5)}
    return make(nodes, held, [ROWS], [(name, T.FLOAT, None) for name in (*outputs, "z")])


def front_conv(make, relu, bias, more=(), outputs=("y",), **attributes):
    """A Conv, perhaps a Relu, and the Conv that reads it."""
    inputs = ["x", "w0", "b0"] if bias else ["x", "w0"]
    before = [h.make_node("Conv", inputs, ["c"], name="front", pads=[1, 1, 1, 1], group=2)]
    before += [h.make_node("Relu", ["c"], ["t"], name="relu")] if relu else []
    constants = {"w0": draw(6, 3, 3, 3, seed=5), **({"b0": draw(6, seed=6)} if bias else {})}
    made = {"before": before, "tensor": "t" if relu else "c", "constants": constants, "more": more, "outputs": outputs}
    return conv(make, **made, **attributes)


FOLDED = {
    "LayerNormalization": (lambda m: normalized(m, "LayerNormalization"), "t", "norm"),
    "BatchNormalization": (lambda m: normalized(m, "BatchNormalization"), "t", "norm"),
    "Conv": (lambda m: front_conv(m, False, True), "c", "front"),
    "Conv without bias": (lambda m: front_conv(m, False, False), "c", "front"),
    "Conv and Relu": (lambda m: front_conv(m, True, True), "t", "front"),
    "Conv and Relu, depthwise reader": (lambda m: front_conv(m, True, True, group=6, pads=[1, 1, 1, 1]), "t", "front"),
}


def tapped(model, tensor):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return copy


@pytest.mark.parametrize("kind", FOLDED)
def test_powers_of_two_move_into_the_producer_without_rounding(make_model, kind):
    make, tensor, name = FOLDED[kind]
    model = make(make_model)
    before = model.SerializeToString()
    migration = Migration(model, find_readers(model, plan_quantization(model)))
    assert migration.producer(tensor, shifted=False) == name
    changed, ends = moved(model, {tensor: choice(FACTORS)})
    assert ends == {tensor: tensor}
    assert model.SerializeToString() == before
    assert [n.op_type for n in changed.graph.node] == [n.op_type for n in model.graph.node], "no node more"
    for found, expected in zip(run(changed), run(model), strict=True):
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    scaled, exact = (run(tapped(m, tensor))[-1] for m in (changed, model))
    by_channel = FACTORS.reshape((-1,) if exact.ndim == 3 else (-1, 1, 1))
    np.testing.assert_array_equal(scaled, exact * by_channel, "and the tensor did change")


@pytest.mark.parametrize("kind", FOLDED)
def test_the_comparison_fails_for_a_wrong_factor(make_model, kind):
    """The control: one constant that was made by the move, doubled."""
    make, tensor, _ = FOLDED[kind]
    model = make(make_model)
    changed, _ = moved(model, {tensor: choice(FACTORS)})
    made = [t for t in changed.graph.initializer if t.name.endswith("/migrated")]
    assert len(made) >= 2
    for constant in made:
        spoiled = onnx.ModelProto()
        spoiled.CopyFrom(changed)
        target = next(t for t in spoiled.graph.initializer if t.name == constant.name)
        target.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(constant), constant.name))
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(run(spoiled), run(model), strict=True)), constant.name


def gelu(make, **attributes):
    return conv(make, before=[h.make_node("Gelu", ["x"], ["t"], name="gelu")], tensor="t", **attributes)


def two_readers(make):
    more = [h.make_node("Conv", ["t", "w2"], ["z"], name="other", pads=[1, 1, 1, 1])]
    return gelu(make, pads=[1, 1, 1, 1], more=more, outputs=("y", "z"), constants={"w2": draw(5, 6, 3, 3, seed=7)})


def gemm(make):
    nodes = [h.make_node("Gelu", ["x"], ["t"]), h.make_node("Gemm", ["t", "w", "b"], ["y"], transB=1, beta=0.5)]
    return make(nodes, {"w": draw(5, 6), "b": draw(5)}, [("x", T.FLOAT, ["n", 6])], [("y", T.FLOAT, None)])


SHIFTS = {
    "LayerNormalization": (lambda m: normalized(m, "LayerNormalization"), "t"),
    "BatchNormalization and padding": (lambda m: normalized(m, "BatchNormalization"), "t"),
    "Conv": (lambda m: front_conv(m, False, True), "c"),
    "Conv without bias": (lambda m: front_conv(m, False, False), "c"),
    "Conv and Relu": (lambda m: front_conv(m, True, True), "t"),
    "inserted": (gelu, "t"),
    "inserted, reader without bias": (lambda m: gelu(m, bias=False), "t"),
    "padded": (lambda m: gelu(m, pads=[1, 1, 1, 1]), "t"),
    "padded unevenly": (lambda m: gelu(m, pads=[0, 1, 2, 3]), "t"),
    "padded and strided": (lambda m: gelu(m, pads=[1, 1, 1, 1], strides=[2, 3]), "t"),
    "dilated": (lambda m: gelu(m, pads=[2, 1, 2, 1], dilations=[2, 1]), "t"),
    "depthwise": (lambda m: gelu(m, pads=[1, 1, 1, 1], group=6), "t"),
    "grouped": (lambda m: gelu(m, pads=[1, 0, 1, 0], group=2, bias=False), "t"),
    "two readers": (two_readers, "t"),
    "Gemm": (gemm, "t"),
    "the input itself": (lambda m: conv(m, pads=[1, 1, 1, 1]), "x"),
}


def close(found, expected):
    return all(np.abs(a - b).max() <= 1e-5 * np.abs(b).max() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("factors", [None, FACTORS], ids=["alone", "with factors"])
@pytest.mark.parametrize("kind", SHIFTS)
def test_a_shift_does_not_change_the_outputs(make_model, kind, factors):
    make, tensor = SHIFTS[kind]
    model = make(make_model)
    changed, ends = moved(model, {tensor: choice(factors, zero=20.25)})
    assert close(run(changed), run(model))
    by_channel = (-1,) if kind in ("LayerNormalization", "Gemm") else (-1, 1, 1)
    exact = run(tapped(model, tensor))[-1] if tensor != "x" else draw(4, 6, 7, 5)
    seen = run(tapped(changed, ends[tensor]))[-1]
    wish = exact * (np.ones(6) if factors is None else factors).reshape(by_channel) - 20.25 * SHIFTED
    np.testing.assert_allclose(seen, wish, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SHIFTS)
def test_the_comparison_fails_for_a_wrong_correction(make_model, kind):
    """The control: the constant after the layer, a bias or a map, one element off by a part in a hundred."""
    make, tensor = SHIFTS[kind]
    model = make(make_model)
    changed, _ = moved(model, {tensor: choice(zero=20.25)})
    name = next(t.name for t in changed.graph.initializer if t.name.startswith(("b/", "b1/", "y/shift", "reader/bias")))
    target = next(t for t in changed.graph.initializer if t.name == name)
    values = numpy_helper.to_array(target).copy()
    at = np.unravel_index(np.abs(values).argmax(), values.shape)
    values[at] *= 1.01
    target.CopyFrom(numpy_helper.from_array(values, name))
    assert not close(run(changed), run(model))


def test_the_border_of_a_padded_conv_needs_the_map(make_model):
    """The control: the correction of the inside, added everywhere as a bias would, is wrong at the border alone."""
    model = gelu(make_model, pads=[1, 1, 1, 1])
    changed, _ = moved(model, {"t": choice(zero=20.0)})
    target = next(t for t in changed.graph.initializer if t.name == "y/shift")
    values = numpy_helper.to_array(target)
    assert values.shape == (1, 4, 7, 5)
    inside = np.broadcast_to(values[:, :, 3:4, 2:3], values.shape)
    assert np.ptp(values[:, :, 1:-1, 1:-1], axis=(2, 3)).max() < 1e-5
    target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(inside), "y/shift"))
    wrong, right = run(changed)[0], run(model)[0]
    np.testing.assert_allclose(wrong[:, :, 1:-1, 1:-1], right[:, :, 1:-1, 1:-1], rtol=1e-4, atol=1e-5)
    assert np.abs(wrong - right)[:, :, 0].max() > 0.1


ELSEWHERE = {
    "read by another node": {"more": [h.make_node("Neg", ["T"], ["other"])], "outputs": ("y", "other")},
    "returned": {"outputs": ("y", "T")},
    "read in a subgraph": {
        "more": [
            h.make_node(
                "If",
                ["yes"],
                ["other"],
                **{
                    branch: h.make_graph(
                        [h.make_node("Neg", ["T"], [branch])], branch, [], [h.make_tensor_value_info(branch, T.FLOAT, None)]
                    )
                    for branch in ("then_branch", "else_branch")
                },
            )
        ],
        "outputs": ("y", "other"),
    },
}


def renamed(nodes, tensor):
    """The nodes with the real name for T, in subgraphs too."""
    made = []
    for node in nodes:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        for part in (copy, *(n for a in copy.attribute for n in a.g.node)):
            part.input[:] = [tensor if i == "T" else i for i in part.input]
        made.append(copy)
    return made


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("kind", ["LayerNormalization", "BatchNormalization", "Conv", "Conv and Relu"])
@pytest.mark.parametrize("zero", [0.0, 20.0])
def test_a_tensor_with_another_reader_is_not_folded(make_model, kind, where, zero):
    def with_condition(nodes, constants, inputs, outputs):
        held = {**constants, "yes": np.array(True)} if "subgraph" in where else constants
        return make_model(nodes, held, inputs, outputs)

    tensor = FOLDED[kind][1]
    more = {"more": renamed(ELSEWHERE[where].get("more", ()), tensor)}
    more["outputs"] = tuple(tensor if o == "T" else o for o in ELSEWHERE[where]["outputs"])
    if "Norm" in kind:
        model = normalized(with_condition, kind, **more)
    else:
        model = front_conv(with_condition, "Relu" in kind, True, **more)
    migration = Migration(model, find_readers(model, plan_quantization(model)))
    assert migration.producer(tensor, shifted=zero != 0) is None
    changed, ends = moved(model, {tensor: choice(FACTORS, zero)})
    assert ends[tensor] != tensor, "a node of its own"
    assert close(run(changed), run(model))


def test_a_conv_whose_relu_is_not_its_only_reader_is_not_scaled(make_model):
    model = front_conv(make_model, True, True, more=[h.make_node("Neg", ["c"], ["other"])], outputs=("y", "other"))
    assert Migration(model, find_readers(model, plan_quantization(model))).producer("t", shifted=False) is None


def test_a_conv_whose_bias_is_computed_is_not_scaled(make_model):
    """Nobody could scale the bias."""
    before = [h.make_node("Abs", ["b0"], ["b1"]), h.make_node("Conv", ["x", "w0", "b1"], ["c"], name="front")]
    model = conv(make_model, before=before, tensor="c", constants={"w0": draw(6, 6, 1, 1), "b0": draw(6)})
    changed, ends = moved(model, {"c": choice(FACTORS, 8.0)})
    assert ends["c"] != "c"
    assert close(run(changed), run(model))


@pytest.mark.parametrize("relu", [False, True])
def test_a_conv_corrected_by_a_map_is_not_scaled_again(make_model, relu):
    """x -> front, which pads -> reader. The shift of x puts a map after front; factors of front's output would miss it."""
    model = front_conv(make_model, relu, True)
    tensor = "t" if relu else "c"
    changed, ends = moved(model, {"x": choice(FACTORS, 12.0), tensor: choice(FACTORS)})
    assert ends[tensor] != tensor
    assert close(run(changed), run(model))
    changed, _ = moved(model, {tensor: choice(FACTORS), "x": choice(FACTORS, 12.0)})  # the other way round it is sound
    assert close(run(changed), run(model))


def front_clip(make, bounds=("low", "high"), *, bias=True, before=(), constants=None, more=(), outputs=("y",), **attributes):
    """Conv -> Clip(0, 6), or with other bounds -> Conv."""
    nodes = [
        h.make_node("Conv", ["x", "w0", "b0"] if bias else ["x", "w0"], ["c"], name="front", pads=[1, 1, 1, 1], group=2),
        *before,
        h.make_node("Clip", ["c", *bounds], ["t"], name="clip"),
    ]
    held = {"w0": draw(6, 3, 3, 3, seed=5), **({"b0": draw(6, seed=6)} if bias else {}), **(constants or {})}
    held |= {"low": np.float32(0), "high": np.float32(6)}
    return conv(make, before=nodes, tensor="t", constants=held, more=more, outputs=outputs, **attributes)


CLIPPED = {
    "unpadded": {},
    "front without bias": {"bias": False},
    "strided": {"strides": [2, 1]},
    "padded": {"pads": [1, 1, 1, 1]},
    "padded, depthwise": {"pads": [1, 1, 1, 1], "group": 6},
}


@pytest.mark.parametrize("kind", CLIPPED)
def test_a_shift_goes_through_a_clip_into_its_conv(make_model, kind):
    model = front_clip(make_model, **CLIPPED[kind])
    migration = Migration(model, find_readers(model, plan_quantization(model)))
    assert migration.producer("t", shifted=True) == "clip"
    assert migration.producer("t", shifted=False) is None, "factors would need bounds of their own per channel"
    exact = run(tapped(model, "t"))[-1]
    assert 0.05 < np.mean(exact == 0) < 0.95, "both bounds are at work"
    assert np.mean(exact == 6) > 0.05
    changed, ends = moved(model, {"t": choice(zero=20.25)})
    assert ends == {"t": "t"}
    assert close(run(changed), run(model))
    old = [n.op_type for n in model.graph.node]
    new = [n.op_type for n in changed.graph.node]
    assert new == ([*old, "Add"] if "pads" in CLIPPED[kind] else old), "the map of a padded reader, no more"
    clip, constants = changed.graph.node[1], index_graph(changed).constants
    bounds = [float(numpy_helper.to_array(constants[name])) for name in clip.input[1:]]
    np.testing.assert_allclose(bounds, [-20.25 * SHIFTED, 6 - 20.25 * SHIFTED], rtol=1e-6)
    np.testing.assert_allclose(run(tapped(changed, "t"))[-1], exact - 20.25 * SHIFTED, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at", [1, 2])
def test_the_comparison_fails_for_an_unmoved_bound(make_model, at):
    """The control."""
    model = front_clip(make_model)
    changed, _ = moved(model, {"t": choice(zero=20.25)})
    clip = changed.graph.node[1]
    old = numpy_helper.from_array(np.float32((0, 6)[at - 1]), "stayed")
    changed.graph.initializer.append(old)
    clip.input[at] = "stayed"
    assert not close(run(changed), run(model))


def test_bounds_that_two_clips_share_move_for_one_of_them(make_model):
    more = [h.make_node("Neg", ["y"], ["n"]), h.make_node("Clip", ["n", "low", "high"], ["z"], name="clip2")]
    model = front_clip(make_model, more=more, outputs=("y", "z"))
    changed, ends = moved(model, {"t": choice(zero=20.25)})
    assert ends["t"] == "t"
    assert close(run(changed), run(model))
    assert next(n for n in changed.graph.node if n.name == "clip2").input[1:] == ["low", "high"]


def test_a_conv_with_a_map_after_it_still_takes_the_shift_of_a_clip(make_model):
    """x -> front, which pads: its map stands between Conv and Clip, and the shift adds to the bias before the map."""
    for order in (("x", "t"), ("t", "x")):
        model = front_clip(make_model)
        changes = {"x": choice(FACTORS, 12.0), "t": choice(zero=20.25)}
        changed, ends = moved(model, {tensor: changes[tensor] for tensor in order})
        assert ends["t"] == "t"
        assert close(run(changed), run(model))
        exact, seen = (run(tapped(m, "t"))[-1] for m in (model, changed))
        np.testing.assert_allclose(seen, exact - 20.25 * SHIFTED, rtol=1e-4, atol=1e-4)


COMPUTED = h.make_node("Abs", ["raw"], ["made"])
UNFOLDED = {
    "no lower bound": {"bounds": ("", "high")},
    "no upper bound": {"bounds": ("low",)},
    "no bounds": {"bounds": ()},
    "lower bound computed": {"bounds": ("made", "high"), "before": [COMPUTED], "constants": {"raw": np.float32(-0.5)}},
    "upper bound computed": {"bounds": ("low", "made"), "before": [COMPUTED], "constants": {"raw": np.float32(-5)}},
    "the Conv is read elsewhere": {"more": [h.make_node("Neg", ["c"], ["other"])], "outputs": ("y", "other")},
    "the Conv is returned": {"outputs": ("y", "c")},
    "the Clip is read elsewhere": {"more": [h.make_node("Neg", ["t"], ["other"])], "outputs": ("y", "other")},
    "the Clip is returned": {"outputs": ("y", "t")},
}


@pytest.mark.parametrize("kind", UNFOLDED)
def test_a_clip_that_cannot_take_a_shift_stays_as_it_is(make_model, kind):
    model = front_clip(make_model, **UNFOLDED[kind])
    migration = Migration(model, find_readers(model, plan_quantization(model)))
    assert migration.producer("t", shifted=True) is None
    changed, ends = moved(model, {"t": choice(zero=20.25)})
    assert ends["t"] != "t", "a node of its own"
    assert close(run(changed), run(model))
    clip, front = (next(n for n in changed.graph.node if n.name == name) for name in ("clip", "front"))
    assert clip == next(n for n in model.graph.node if n.name == "clip")
    assert front == next(n for n in model.graph.node if n.name == "front")


def test_a_clip_of_something_else_than_a_conv_is_not_shifted(make_model):
    before = [h.make_node("Gelu", ["x"], ["g"]), h.make_node("Clip", ["g", "low", "high"], ["t"], name="clip")]
    model = conv(make_model, before=before, tensor="t", constants={"low": np.float32(0), "high": np.float32(6)})
    assert Migration(model, find_readers(model, plan_quantization(model))).producer("t", shifted=True) is None


def test_what_a_clip_makes_is_told_from_the_rest(make_model):
    for make, tensor, wanted in (
        (front_clip, "t", True),
        (lambda m: front_conv(m, True, True), "t", False),
        (gelu, "t", False),
        (conv, "x", False),
    ):
        model = make(make_model)
        assert Migration(model, find_readers(model, plan_quantization(model))).clipped(tensor) == wanted


def test_moves_along_a_chain_add_up(make_model):
    """Every Conv reads a shifted tensor and makes another one: weights and biases change twice."""
    names = ["x", "t1", "t2", "t3"]
    nodes = [
        h.make_node("Conv", [names[i], f"w{i}", f"b{i}"], [names[i + 1]], name=f"c{i}", pads=[i % 2] * 4) for i in range(3)
    ]
    constants = {f"w{i}": draw(6, 6, 3, 3, seed=i) / 5 for i in range(3)} | {f"b{i}": draw(6, seed=i) for i in range(3)}
    model = make_model(nodes, constants, [IMAGE], [("t3", T.FLOAT, None)])
    changed, ends = moved(model, {t: choice(np.roll(FACTORS, i), 7.0 * (i + 1)) for i, t in enumerate(names[:3])})
    assert ends["t1"] == "t1"
    assert close(run(changed), run(model))


def test_a_map_needs_a_known_and_moderate_size(make_model, monkeypatch):
    fixed = gelu(make_model, pads=[1, 1, 1, 1])
    free = gelu(make_model, pads=[1, 1, 1, 1], source=("x", T.FLOAT, ["n", 6, "height", "width"]))
    unpadded = gelu(make_model, source=("x", T.FLOAT, ["n", 6, "height", "width"]))

    def can_shift(model):
        return Migration(model, find_readers(model, plan_quantization(model))).can_shift("t")

    assert can_shift(fixed)
    assert not can_shift(free)
    assert can_shift(unpadded), "a bias will do"
    changed, _ = moved(unpadded, {"t": choice(FACTORS, 9.0)})
    values = draw(2, 6, 9, 4)
    assert close(run(changed, values), run(unpadded, values))
    monkeypatch.setattr(smoothquant, "LARGEST_MAP", 4 * 7 * 5 - 1)
    assert not can_shift(fixed)


def test_the_other_reader_of_a_shared_weight_keeps_it(make_model):
    nodes = [
        h.make_node("LayerNormalization", ["x", "s", "o"], ["t"], name="norm"),
        h.make_node("MatMul", ["t", "w"], ["m"], name="first"),
        h.make_node("LayerNormalization", ["m", "s", "o"], ["u"], name="norm2"),
        h.make_node("MatMul", ["u", "w"], ["y"], name="second"),
    ]
    constants = {"s": draw(6), "o": draw(6, seed=1), "w": draw(6, 6)}
    model = make_model(nodes, constants, [ROWS], [("y", T.FLOAT, None)])
    changed, _ = moved(model, {"t": choice(FACTORS)})
    np.testing.assert_array_equal(run(changed)[0], run(model)[0])
    second = changed.graph.node[index_graph(changed).names.index("second")]
    assert second.input[1] == "w"
