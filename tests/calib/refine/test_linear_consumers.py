"""Oracle: ONNX Runtime's own Conv, Gemm and MatMul at the same positions."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.qdq_placement import QuantScheme, plan_quantization
from calib.refine.activation_sample import take_samples
from calib.refine.linear_consumers import Geometry, find_readers

EVERY = 1 << 30
CONVS = {
    "plain": {"channels": 4, "out": 6, "kernel": (3, 3)},
    "pointwise": {"channels": 4, "out": 6, "kernel": (1, 1)},
    "grouped": {"channels": 6, "out": 4, "kernel": (3, 3), "group": 2, "pads": [1, 1, 1, 1]},
    "depthwise": {"channels": 4, "out": 4, "kernel": (3, 3), "group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]},
    "depthwise by two": {"channels": 4, "out": 8, "kernel": (3, 1), "group": 4},
    "strided": {"channels": 3, "out": 5, "kernel": (2, 3), "strides": [2, 3]},
    "padded unevenly": {"channels": 3, "out": 5, "kernel": (3, 3), "pads": [0, 1, 2, 3]},
    "dilated": {"channels": 3, "out": 5, "kernel": (3, 2), "dilations": [2, 3], "pads": [2, 1, 0, 3], "strides": [1, 2]},
}


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def run(model, values):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0]


def conv(make_model, channels, out, kernel, group=1, **attributes):
    weight = draw(out, channels // group, *kernel)
    node = h.make_node("Conv", ["x", "w"], ["y"], name="layer", group=group, **attributes)
    model = make_model([node], {"w": weight}, [("x", T.FLOAT, ["n", channels, 9, 8])], [("y", T.FLOAT, None)])
    return model, weight, draw(2, channels, 9, 8)


def only_reader(model):
    ((tensor, (reader,)),) = find_readers(model, plan_quantization(model)).items()
    assert (tensor, reader.tensor, reader.node, reader.weight) == ("x", "x", "layer", "w")
    return reader


def multiply(reader, weight, values):
    """(n, G * N) by the patches, in float64."""
    patches = reader.geometry.patches(values, EVERY, np.random.default_rng(0)).astype(np.float64)
    matrix = reader.matrix(weight.astype(np.float64))
    return np.stack([patches[:, g] @ matrix[g] for g in range(len(matrix))], axis=1).reshape(len(patches), -1)


@pytest.mark.parametrize("kind", CONVS)
def test_patches_times_matrix_is_the_conv(make_model, kind):
    model, weight, values = conv(make_model, **CONVS[kind])
    reader = only_reader(model)
    by_position = run(model, values).transpose(0, 2, 3, 1).reshape(-1, len(weight))
    np.testing.assert_allclose(multiply(reader, weight, values), by_position, rtol=1e-4, atol=1e-5)
    assert reader.geometry.padded == ("pads" in CONVS[kind])
    assert reader.axis == 0


@pytest.mark.parametrize(("kind", "change"), [("padded unevenly", "pads"), ("dilated", "strides"), ("grouped", "groups")])
def test_the_comparison_sees_a_wrong_geometry(make_model, kind, change):
    """The control: patches that are cut otherwise do not give the Conv."""
    model, weight, values = conv(make_model, **CONVS[kind])
    reader = only_reader(model)
    g = reader.geometry
    if change == "groups":  # the same numbers, but channels dealt out to the groups in turns
        order = np.arange(values.shape[1]).reshape(-1, g.groups).T.ravel()
        wrong = multiply(reader, weight, np.ascontiguousarray(values[:, order]))
    else:
        turned = tuple(reversed(getattr(g, change)))
        spoiled = Geometry(**{**vars(g), change: turned})
        wrong = multiply(type(reader)(**{**vars(reader), "geometry": spoiled}), weight, values)
    right = run(model, values).transpose(0, 2, 3, 1).reshape(-1, len(weight))
    assert wrong.shape != right.shape or not np.allclose(wrong, right, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("op_type", "transposed", "shape"),
    [("MatMul", False, (2, 3, 7, 5)), ("MatMul", False, (4, 5)), ("Gemm", False, (4, 5)), ("Gemm", True, (4, 5))],
)
def test_patches_times_matrix_is_the_product(make_model, op_type, transposed, shape):
    weight = draw(6, 5) if transposed else draw(5, 6)
    more = {"transB": int(transposed)} if op_type == "Gemm" else {}
    node = h.make_node(op_type, ["x", "w"], ["y"], name="layer", **more)
    model = make_model([node], {"w": weight}, [("x", T.FLOAT, ["n", *shape[1:]])], [("y", T.FLOAT, None)])
    reader, values = only_reader(model), draw(*shape)
    by_row = run(model, values).reshape(-1, 6)
    np.testing.assert_allclose(multiply(reader, weight, values), by_row, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(reader.weight_of(reader.matrix(weight), weight.shape), weight)
    assert weight.shape[reader.axis] == 6
    assert not reader.geometry.padded


@pytest.mark.parametrize("kind", CONVS)
def test_a_weight_survives_the_way_there_and_back(make_model, kind):
    model, weight, _ = conv(make_model, **CONVS[kind])
    reader = only_reader(model)
    np.testing.assert_array_equal(reader.weight_of(reader.matrix(weight), weight.shape), weight)


@pytest.mark.parametrize("kind", CONVS)
def test_every_element_of_a_patch_knows_its_channel(make_model, kind):
    model, _, values = conv(make_model, **CONVS[kind])
    geometry = only_reader(model).geometry
    numbered = np.broadcast_to(np.arange(1, values.shape[1] + 1, dtype=np.float32).reshape(1, -1, 1, 1), values.shape)
    patches = geometry.patches(np.ascontiguousarray(numbered), EVERY, np.random.default_rng(0))
    inside = patches != 0  # padding
    expected = np.broadcast_to(geometry.channels(values.shape[1]) + 1, patches.shape)
    np.testing.assert_array_equal(patches[inside], expected[inside])
    assert inside.mean() > 0.5


@pytest.mark.parametrize("kind", ["plain", "strided"])
def test_few_patches_are_drawn_without_replacement(make_model, kind):
    model, _, values = conv(make_model, **CONVS[kind])
    geometry = only_reader(model).geometry
    every = geometry.patches(values, EVERY, np.random.default_rng(0))
    some = geometry.patches(values, 12, np.random.default_rng(1))
    rows = {row.tobytes() for row in every}
    assert len(rows) == len(every), "normal numbers: no two patches are alike"
    assert len({row.tobytes() for row in some}) == 12
    assert {row.tobytes() for row in some} <= rows
    np.testing.assert_array_equal(some, geometry.patches(values, 12, np.random.default_rng(1)))
    assert not np.array_equal(some, geometry.patches(values, 12, np.random.default_rng(2)))


def test_the_readers_of_the_tiny_network(tiny):
    found = find_readers(tiny, plan_quantization(tiny))
    # ln also goes into a product of two activations, as do kt and v1
    assert list(found) == ["image", "g0", "pooled"]
    assert found["g0"][0].geometry.groups == 8
    assert found["pooled"][0].transposed
    unread = find_readers(tiny, plan_quantization(tiny, QuantScheme(exclude=("attn/*",))))
    assert [r.node for r in unread["ln"]] == ["attn.k/MatMul", "attn.v/MatMul"]
    assert list(find_readers(tiny, plan_quantization(tiny, QuantScheme(exclude=("lpi/*",))))) == ["image", "pooled"]


LEFT_OUT = {
    "Conv that pads by rule": (h.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER"), (5, 4, 3, 3), ["n", 4, 6, 6]),
    "Conv of one dimension": (h.make_node("Conv", ["x", "w"], ["y"]), (5, 4, 3), ["n", 4, 6]),
    "Gemm that transposes": (h.make_node("Gemm", ["x", "w"], ["y"], transA=1), (4, 5), [4, "n"]),
    "Gemm that scales": (h.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5), (4, 5), ["n", 4]),
    "product of two activations": (h.make_node("MatMul", ["x", "x"], ["y"]), (1,), [4, 4]),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_left_out(make_model, kind):
    node, weight, shape = LEFT_OUT[kind]
    model = make_model([node], {"w": draw(*weight)}, [("x", T.FLOAT, shape)], [("y", T.FLOAT, None)])
    plan = plan_quantization(model)
    assert plan.activations == ("x",), "it is quantized, only not refined"
    assert find_readers(model, plan) == {}


def test_readers_that_cut_otherwise_are_left_out_together(make_model):
    shape = [("x", T.FLOAT, ["n", 4, 4, 4])]
    first = h.make_node("Conv", ["x", "w"], ["a"], name="c1")
    for second, alike in (
        (h.make_node("Conv", ["x", "w"], ["b"], name="c2"), True),
        (h.make_node("Conv", ["x", "w"], ["b"], name="c2", strides=[2, 2]), False),
        (h.make_node("MatMul", ["x", "m"], ["b"], name="mm"), False),
    ):
        constants = {"w": draw(5, 4, 1, 1), "m": draw(4, 3)}
        model = make_model([first, second], constants, shape, [(name, T.FLOAT, None) for name in "ab"])
        assert list(find_readers(model, plan_quantization(model))) == (["x"] if alike else [])


def rows_of(patches):
    return {row.tobytes() for row in patches}


def test_samples_hold_patches_and_the_range_of_every_channel(tiny, images):
    readers = find_readers(tiny, plan_quantization(tiny))
    batches = np.split(images, [5, 40])
    samples = take_samples(tiny, readers, batches, 1)
    np.testing.assert_array_equal(samples["image"].low, images.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(samples["image"].high, images.max(axis=(0, 2, 3)))
    np.testing.assert_array_equal(samples["image"].early, np.abs(images[:5]).max(axis=(0, 2, 3)))
    assert samples["image"].patches.shape == (512, 1, 27), "256 of each of the two batches of the second half"
    assert samples["pooled"].low.shape == samples["pooled"].early.shape == (8,)
    assert samples["g0"].patches.shape[1:] == (8, 9)
    again = take_samples(tiny, readers, batches, 1)
    for tensor, sample in samples.items():
        np.testing.assert_array_equal(sample.patches, again[tensor].patches)
        assert np.all(sample.early <= np.maximum(-sample.low, sample.high))


@pytest.mark.parametrize(("sizes", "early"), [((40, 24), 40), ((10, 30, 24), 10), ((16, 16, 16, 16), 32)])
def test_patches_are_of_the_second_half_and_early_ranges_of_the_first(tiny, images, sizes, early):
    readers = find_readers(tiny, plan_quantization(tiny))
    geometry = readers["image"][0].geometry
    sample = take_samples(tiny, readers, np.split(images, np.cumsum(sizes)[:-1]), 1)["image"]
    first, second = (rows_of(geometry.patches(part, EVERY, np.random.default_rng(0))) for part in np.split(images, [early]))
    assert not first & second, "normal numbers: no two patches are alike"
    found = rows_of(sample.patches)
    assert found <= second
    assert not found & first
    np.testing.assert_array_equal(sample.early, np.abs(images[:early]).max(axis=(0, 2, 3)))


def test_a_single_batch_is_both_halves(tiny, images):
    sample = take_samples(tiny, find_readers(tiny, plan_quantization(tiny)), [images], 1)["image"]
    np.testing.assert_array_equal(sample.early, np.abs(images).max(axis=(0, 2, 3)))
    assert len(sample.patches) == 512


def test_a_graph_of_one_batch_size_is_sampled_in_whole_batches(make_model):
    node = h.make_node("MatMul", ["r", "w"], ["y"], name="layer")
    nodes = [h.make_node("Relu", ["x"], ["r"]), node]
    model = make_model(nodes, {"w": draw(5, 6)}, [("x", T.FLOAT, [48, 3, 5])], [("y", T.FLOAT, [48, 3, 6])])
    values = draw(480, 3, 5)
    sample = take_samples(model, find_readers(model, plan_quantization(model)), np.split(values, 10), 1)["r"]
    assert 512 <= len(sample.patches) < 512 + 5, "as many of each of the five batches of the second half"
    np.testing.assert_array_equal(sample.high, np.maximum(values, 0).max(axis=(0, 1)))
    np.testing.assert_array_equal(sample.early, np.maximum(values[:240], 0).max(axis=(0, 1)))
