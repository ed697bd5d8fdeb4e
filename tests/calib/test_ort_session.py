"""TappedGraph: the oracle is onnx's reference evaluator, which computes every tensor of a graph in numpy."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx.reference import ReferenceEvaluator

from calib.errors import DataError, GraphError
from calib.ort_session import TappedGraph, check_batch

INNER = ("c0", "g0", "r1", "x", "ln", "k1", "kt", "kv", "norm", "xn", "a", "x1", "pooled")
TOLERANCE = 1e-4  # a dozen layers in FP32, summed in another order; the values are of order one


def expected(model, tensor, images):
    """One tensor, computed by the graph that ends there."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.output[:]
    cut.graph.output.append(h.make_tensor_value_info(tensor, T.FLOAT, None))
    return ReferenceEvaluator(cut).run(None, {"image": images})[0]


def near(found, wanted):
    return found.dtype == wanted.dtype and found.shape == wanted.shape and bool((np.abs(found - wanted) <= TOLERANCE).all())


@pytest.fixture
def few(images):
    return images[:3]


def test_every_tap_is_what_the_reference_evaluator_computes(tiny, few):
    found = TappedGraph(tiny, INNER)(few)
    assert tuple(found) == INNER
    for name in INNER:
        assert near(found[name], expected(tiny, name, few)), name


@pytest.mark.parametrize("damage", [lambda x: 2 * x, lambda x: x / 2, lambda x: -x, lambda x: x[:2], lambda x: x * np.nan])
def test_the_comparison_sees_damage(tiny, few, damage):
    assert near(expected(tiny, "kv", few), expected(tiny, "kv", few))
    assert not near(damage(expected(tiny, "kv", few)), expected(tiny, "kv", few))
    assert not near(expected(tiny, "xn", few), expected(tiny, "a", few)), "one tensor is not taken for another"


def test_taps_are_not_fused_away(tiny, few):
    """GELU and the norm are what optimizers melt together; one tap at a time, so that nothing else keeps a tensor alive."""
    for name in INNER:
        assert near(TappedGraph(tiny, (name,))(few)[name], expected(tiny, name, few)), name


def test_input_and_output_may_be_tapped(tiny, few):
    found = TappedGraph(tiny, ("logits", "image", "kv"))(few)
    assert set(found) == {"logits", "image", "kv"}
    np.testing.assert_array_equal(found["image"], few)
    for name in ("logits", "kv"):
        assert near(found[name], expected(tiny, name, few))
    assert TappedGraph(tiny, ())(few) == {}
    (only,) = TappedGraph(tiny, ("image",))(few).values()
    np.testing.assert_array_equal(only, few)


@pytest.mark.parametrize("threads", [1, 2, 0])
def test_batches_may_vary_and_threads_change_nothing_that_matters(tiny, images, threads):
    graph = TappedGraph(tiny, ("x", "kv"), threads=threads)
    for batch in (images[:1], images[:5]):
        found = graph(batch)
        assert near(found["x"], expected(tiny, "x", batch))
        assert near(found["kv"], expected(tiny, "kv", batch))


def test_the_model_is_left_as_it_is(tiny, few):
    before = tiny.SerializeToString(deterministic=True)
    TappedGraph(tiny, INNER)(few)
    assert tiny.SerializeToString(deterministic=True) == before
    assert [v.name for v in tiny.graph.output] == ["logits"]


def test_half_precision_tensors_and_integers_can_be_tapped(make_model):
    nodes = [
        h.make_node("Cast", ["image"], ["low"], to=T.FLOAT16),
        h.make_node("Shape", ["low"], ["size"]),
        h.make_node("Cast", ["low"], ["y"], to=T.FLOAT),
    ]
    model = make_model(nodes, {}, [("image", T.FLOAT, ["batch", 4])], [("y", T.FLOAT, ["batch", 4])])
    x = np.float32([[1 + 2**-12, 70000, 2**-26, 3]])
    found = TappedGraph(model, ("low", "size", "y"))(x)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found["low"], x.astype(np.float16))
    assert found["low"].dtype == np.float16
    assert found["size"].tolist() == [1, 4]


@pytest.mark.parametrize("names", [("elsewhere",), ("kv", "elsewhere"), ("w_k",), ("",)])
def test_a_tensor_that_the_graph_does_not_make_is_refused(tiny, names):
    """A weight is not a tap either: it is the same for every image."""
    with pytest.raises(GraphError, match=rf"made for another graph[\s\S]*where: a\.onnx[\s\S]*found: {names[-1]}"):
        TappedGraph(tiny, names, where="a.onnx")


@pytest.mark.parametrize("inputs", [0, 2])
def test_a_graph_with_another_number_of_inputs_than_one_is_refused(make_model, inputs):
    names = ["first", "second"][:inputs]
    node = h.make_node("Add", names, ["y"]) if inputs else h.make_node("Identity", ["w"], ["y"])
    ports = [(name, T.FLOAT, ["batch", 4]) for name in names]
    model = make_model([node], {"w": np.ones((1, 4), np.float32)}, ports, [("y", T.FLOAT, [None, 4])])
    with pytest.raises(GraphError, match=rf"must have one input[\s\S]*found: {', '.join(names)}"):
        TappedGraph(model, ("y",))


def test_an_initializer_with_a_port_is_no_second_input(make_model):
    """IR version 3 lists every weight among the inputs too."""
    ports = [("image", T.FLOAT, ["batch", 4]), ("w", T.FLOAT, [1, 4])]
    model = make_model(
        [h.make_node("Add", ["image", "w"], ["y"])], {"w": np.ones((1, 4), np.float32)}, ports, [("y", T.FLOAT, ["batch", 4])]
    )
    model.ir_version = 3
    x = np.zeros((2, 4), np.float32)
    assert (TappedGraph(model, ("y",))(x)["y"] == 1).all()


def test_a_graph_that_onnx_runtime_refuses_is_an_input_error(tiny):
    tiny.graph.node[1].op_type = "Gelato"
    with pytest.raises(GraphError, match=r"ONNX Runtime refuses the graph[\s\S]*where: a\.onnx[\s\S]*Gelato"):
        TappedGraph(tiny, ("kv",), where="a.onnx")


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x[:, :2], lambda x: x[..., :7], lambda x: x[0], lambda x: x.astype(float), lambda x: x.astype(np.float16)],
)
def test_arrays_that_the_graph_does_not_take_are_refused(tiny, few, spoil):
    bad = spoil(few)
    with pytest.raises(DataError, match=r"does not take these images") as caught:
        TappedGraph(tiny, ("kv",))(bad)
    assert f"{bad.dtype} {bad.shape}" in str(caught.value)
    assert "['batch', 3, 8, 8]" in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_batches_with_nan_or_infinity_are_refused(few, bad):
    check_batch(few, 0)
    few[2, 1, 3, 3] = bad
    with pytest.raises(DataError, match=r"NaN or infinity in the images[\s\S]*batch after image 96"):
        check_batch(few, 96)


@pytest.mark.parametrize(
    "spoil", [lambda x: x.astype(float), lambda x: x.astype(np.float16), lambda x: np.float32(1) + x.sum()]
)
def test_what_is_no_batch_is_refused(few, spoil):
    with pytest.raises(DataError, match=r"not a batch of images[\s\S]*float32 or integers \(B, \.\.\.\)"):
        check_batch(np.asarray(spoil(few)), 0)
