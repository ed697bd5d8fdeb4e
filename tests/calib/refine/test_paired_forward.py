"""Oracle: ONNX Runtime on the whole graph, and on the whole graph with the same weights altered, image by image."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.errors import DataError, GraphError
from calib.refine import paired_forward
from calib.refine.paired_forward import select_batches, walk

C = 6
IN_ORDER = ("image", "r0", "sum", "x1", "ln", "mixed", "pooled")
"""Tensors that layers read, in graph order; r0 and ln have two readers."""
READERS = {
    "image": ("w_stem",),
    "r0": ("w_a", "w_b"),
    "sum": ("w_dw",),
    "x1": ("w_pw",),
    "ln": ("w_q", "w_v"),
    "mixed": ("w_out",),
    "pooled": ("w_head",),
}


def draw(*shape, seed):
    fan = np.prod(shape[1:]) if len(shape) > 1 else 4
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan)).astype(np.float32)


def network(build):
    """r0 lives across three cuts, the image across all of them, and the shape of the image is read late."""
    n = h.make_node
    nodes = [
        n("Shape", ["image"], ["shape"], name="shape"),
        n("Conv", ["image", "w_stem", "b_stem"], ["c0"], name="stem", pads=[1, 1, 1, 1], strides=[2, 2]),
        n("Relu", ["c0"], ["r0"], name="relu"),
        n("Conv", ["r0", "w_a"], ["a"], name="a"),
        n("Conv", ["r0", "w_b"], ["b"]),  # unnamed on purpose
        n("Add", ["a", "b"], ["s"], name="join"),
        n("Gelu", ["s"], ["sum"], name="gelu"),
        n("Conv", ["sum", "w_dw"], ["d"], name="depthwise", group=C, pads=[1, 1, 1, 1]),
        n("Add", ["d", "r0"], ["x1"], name="residual1"),
        n("Conv", ["x1", "w_pw", "b_pw"], ["p"], name="pointwise"),
        n("Gather", ["shape", "first"], ["batch"], name="gather"),
        n("Concat", ["batch", "rest"], ["wanted"], name="wanted", axis=0),
        n("Reshape", ["p", "wanted"], ["flat"], name="flatten"),
        n("Transpose", ["flat"], ["x2"], name="tokens", perm=[0, 2, 1]),
        n("LayerNormalization", ["x2", "ln_w", "ln_b"], ["ln"], name="norm"),
        n("MatMul", ["ln", "w_q"], ["q"], name="q"),
        n("MatMul", ["ln", "w_v"], ["v"], name="v"),
        n("Tanh", ["q"], ["gate"], name="gate"),
        n("Mul", ["gate", "v"], ["mixed"], name="mix"),
        n("MatMul", ["mixed", "w_out"], ["o"], name="out"),
        n("Add", ["x2", "o"], ["x3"], name="residual2"),
        n("Reshape", ["image", "row_shape"], ["rows"], name="rows"),
        n("ReduceMean", ["rows", "all"], ["light"], name="light", keepdims=1),  # (B, 1, 1)
        n("Add", ["x3", "light"], ["x4"], name="lighten"),
        n("ReduceMean", ["x4", "token_axis"], ["pooled"], name="pool", keepdims=0),
        n("Gemm", ["pooled", "w_head"], ["logits"], name="head", transB=1),
    ]
    constants = {
        "w_stem": draw(C, 3, 3, 3, seed=1),
        "b_stem": draw(C, seed=2),
        "w_a": draw(C, C, 1, 1, seed=3),
        "w_b": draw(C, C, 1, 1, seed=4),
        "w_dw": draw(C, 1, 3, 3, seed=5),
        "w_pw": draw(C, C, 1, 1, seed=6),
        "b_pw": draw(C, seed=7),
        "first": np.array([0], np.int64),
        "rest": np.array([C, 16], np.int64),
        "ln_w": 1 + draw(C, seed=8) / 4,
        "ln_b": draw(C, seed=9),
        "w_q": draw(C, C, seed=10),
        "w_v": draw(C, C, seed=11),
        "w_out": draw(C, C, seed=12),
        "row_shape": np.array([0, 3, 64], np.int64),
        "all": np.array([1, 2], np.int64),
        "token_axis": np.array([1], np.int64),
        "w_head": draw(5, C, seed=13),
    }
    return build(nodes, constants, [("image", T.FLOAT, ["n", 3, 8, 8])], [("logits", T.FLOAT, ["n", 5])])


@pytest.fixture
def model(make_model):
    return network(make_model)


@pytest.fixture
def batches():
    """Of different sizes, and every image of its own."""
    return np.split(np.random.default_rng(5).normal(size=(32, 3, 8, 8)).astype(np.float32), [3, 7, 15, 20, 28])


def altered(model, weights):
    """A copy with these initializers, as far as it holds them, made otherwise."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.round(values * 4).astype(np.float32) / 4 + np.float32(0.1), tensor.name))
    return copy


def whole(model, images, tensors=IN_ORDER):
    """Tensors of a whole graph: tensor -> array."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inner = [t for t in tensors if t != "image"]
    copy.graph.output.extend(onnx.ValueInfoProto(name=t) for t in inner)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {"image": images, **dict(zip(inner, session.run(inner, {"image": images}), strict=True))}


def close(found, wanted):
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def matches(pairs, tensor, exact, changed):
    """For every pair, which batch both of its sides belong to; None where they belong to none, or to different ones."""
    return [
        next((i for i in range(len(exact)) if close(x, exact[i][tensor]) and close(seen, changed[i][tensor])), None)
        for x, seen in pairs
    ]


EVERY_WEIGHT = tuple(w for weights in READERS.values() for w in weights)


def alter_all(segment):
    return altered(segment.model, EVERY_WEIGHT)


def test_both_graphs_give_the_tensors_of_whole_runs(model, batches):
    exact = [whole(model, b) for b in batches]
    changed = [whole(altered(model, EVERY_WEIGHT), b) for b in batches]
    found = {t: list(pairs) for t, pairs in walk(model, IN_ORDER[::-1], batches, alter_all, 1)}
    assert tuple(found) == IN_ORDER, "graph order, whatever the order they were asked in"
    for tensor, pairs in found.items():
        assert sorted(matches(pairs, tensor, exact, changed)) == list(range(len(batches))), tensor
    for x, seen in found["image"]:
        assert x is seen
    for tensor in IN_ORDER[1:]:
        assert not any(close(x, seen) for x, seen in found[tensor]), f"the alteration is seen in {tensor}"


@pytest.mark.parametrize("weight", EVERY_WEIGHT)
def test_the_comparison_fails_for_one_weight(model, batches, weight):
    """The control: all other weights altered; tensors before the unaltered one agree, the others do not."""
    exact = [whole(model, b) for b in batches]
    changed = [whole(altered(model, EVERY_WEIGHT), b) for b in batches]
    others = set(EVERY_WEIGHT) - {weight}
    position = next(i for i, t in enumerate(IN_ORDER) if weight in READERS[t])
    for at, (tensor, pairs) in enumerate(walk(model, IN_ORDER, batches, lambda s: altered(s.model, others), 1)):
        same = [m is not None for m in matches(pairs, tensor, exact, changed)]
        assert all(same) if at <= position else not any(same), tensor


@pytest.mark.parametrize("tensors", [("ln",), ("image",), ("sum", "image"), ("r0", "pooled")])
def test_few_tensors_need_no_more_cuts(model, batches, tensors):
    exact = [whole(model, b) for b in batches]
    changed = [whole(altered(model, EVERY_WEIGHT), b) for b in batches]
    found = {t: list(pairs) for t, pairs in walk(model, tensors, batches, alter_all, 1)}
    assert set(found) == set(tensors)
    for tensor, pairs in found.items():
        assert None not in matches(pairs, tensor, exact, changed)


def test_an_update_at_one_tensor_reaches_the_next(model, batches):
    """As refinements go: the readers of a tensor are altered once it has been given, and not before."""
    settled, asked = [], []

    def quantize(segment):
        asked.append(segment.nodes)
        return altered(segment.model, settled)

    exact = [whole(model, b) for b in batches]
    changed = [whole(altered(model, EVERY_WEIGHT), b) for b in batches]
    for done, (tensor, pairs) in enumerate(walk(model, IN_ORDER, batches, quantize, 1)):
        assert len(asked) == done, "a segment is asked for when its turn comes"
        assert None not in matches(pairs, tensor, exact, changed), tensor
        settled += READERS[tensor]
    assert all(asked), "no segment without nodes, such as that before the image, is requested"
    ran = [name for nodes in asked for name in nodes]
    assert ran == [n.name or n.output[0] for n in model.graph.node if n.name != "head"], "every node once, in order"


def test_an_unchanged_segment_gives_the_same_in_both_graphs(model, batches):
    for tensor, pairs in walk(model, IN_ORDER, batches, lambda _segment: None, 1):
        for x, seen in pairs:
            np.testing.assert_array_equal(x, seen, err_msg=tensor)
    late = [whole(altered(model, ["w_q"]), b) for b in batches]
    exact = [whole(model, b) for b in batches]
    part = walk(model, IN_ORDER, batches, lambda s: altered(s.model, ["w_q"]) if "q" in s.nodes else None, 1)
    for tensor, pairs in part:
        assert None not in matches(pairs, tensor, exact, late), "what came before is the same, what follows is not"


def test_the_given_batches_are_not_changed(model, batches):
    before = [b.copy() for b in batches]
    first = [(t, [(x.copy(), y.copy()) for x, y in pairs]) for t, pairs in walk(model, IN_ORDER, batches, alter_all, 1)]
    for old, new in zip(before, batches, strict=True):
        np.testing.assert_array_equal(old, new)
    for (_, a), (_, b) in zip(first, walk(model, IN_ORDER, batches, alter_all, 1), strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left[0], right[0])
            np.testing.assert_array_equal(left[1], right[1])


# Memory


def equal_batches():
    return np.split(np.random.default_rng(6).normal(size=(48, 3, 8, 8)).astype(np.float32), 24)


STATES = {
    "r0": ("image", "r0", "shape"),
    "sum": ("image", "r0", "sum", "shape"),
    "x1": ("image", "x1", "shape"),
    "ln": ("image", "x2", "ln"),
    "mixed": ("image", "x2", "mixed"),
    "pooled": ("pooled",),
}
"""What is still to be read after each tensor."""


def carried_bytes(model, batch, tensor):
    return sum(v.nbytes for t, v in whole(model, batch, STATES[tensor]).items() if t in STATES[tensor])


@pytest.mark.parametrize("share", [2.0, 0.9, 0.5, 0.1, 0.0])
def test_where_memory_is_short_batches_wait_and_follow(model, monkeypatch, share):
    given = equal_batches()
    exact = [whole(model, b) for b in given]
    changed = [whole(altered(model, EVERY_WEIGHT), b) for b in given]
    limit = int(share * len(given) * carried_bytes(model, given[0], "sum"))
    monkeypatch.setattr(paired_forward, "LIVE_BYTES", limit)
    counts = {}
    for tensor, pairs in walk(model, IN_ORDER, given, alter_all, 1):
        numbers = matches(pairs, tensor, exact, changed)
        assert None not in numbers, "the sides of a pair are of the same images"
        assert len(set(numbers)) == len(numbers)
        counts[tensor] = len(pairs)
        if tensor != "image":
            assert len(pairs) <= limit // carried_bytes(model, given[0], tensor) + 1, "one batch may reach over the limit"
        if tensor == "sum" and share == 0.5:
            assert min(numbers) < 4, "what is carried lies all over the images"
            assert max(numbers) >= 20
    assert (counts["sum"] == len(given)) == (share == 2.0)
    assert counts["pooled"] == (len(given) if share else 1), "the last tensor is small: all have followed"


def test_the_comparison_fails_for_pairs_of_different_images(model):
    """The control."""
    given = equal_batches()
    exact = [whole(model, b) for b in given]
    changed = [whole(altered(model, EVERY_WEIGHT), b) for b in given]
    shifted = [(exact[i]["ln"], changed[(i + 1) % len(given)]["ln"]) for i in range(len(given))]
    assert set(matches(shifted, "ln", exact, changed)) == {None}


def test_graphs_and_arrays_that_do_not_match_are_refused(model, batches, make_model):
    with pytest.raises(DataError, match="does not take these tensors"):
        list(walk(model, IN_ORDER, [b[:, :2] for b in batches], alter_all, 1))
    two = make_model(
        [h.make_node("Add", ["x", "y"], ["t"]), h.make_node("Relu", ["t"], ["z"])],
        {},
        [("x", T.FLOAT, ["n"]), ("y", T.FLOAT, ["n"])],
        [("z", T.FLOAT, ["n"])],
    )
    with pytest.raises(GraphError, match="one input"):
        list(walk(two, ("t",), [np.ones(3, np.float32)], alter_all, 1))


# Which images


def numbered(images, size):
    """Batches of numbered images."""
    return [np.arange(at, min(at + size, images), dtype=np.float32)[:, None] for at in range(0, images, size)]


@pytest.mark.parametrize(
    ("images", "size", "batches", "kept"),
    [
        (4096, 32, 16, 512),
        (512, 32, 16, 512),
        (100, 32, 4, 100),
        (2048, 1, 512, 512),
        (5000, 500, 2, 1000),
        (8192, 8192, 1, 8192),
    ],
)
def test_whole_batches_are_taken_evenly(images, size, batches, kept):
    found = select_batches(iter(numbered(images, size)), images)
    assert len(found) == batches
    assert sum(map(len, found)) == kept
    starts = [int(b[0, 0]) for b in found]
    assert all(start % size == 0 for start in starts)
    if batches > 1:
        (step,) = set(np.diff(starts))
        assert starts[0] == 0
        assert starts[-1] + step >= images - size, "up to the end"


def test_batches_beyond_what_fits_are_dropped(monkeypatch):
    monkeypatch.setattr(paired_forward, "LIVE_BYTES", 4 * 32 * 3)
    found = select_batches(iter(numbered(4096, 32)), 4096)
    assert sum(b.nbytes for b in found) == 4 * 32 * 3
    starts = [int(b[0, 0]) for b in found]
    assert starts[0] < 4096 / 3 <= starts[1] < 2 * 4096 / 3 <= starts[2] + 32, "the rest is spread evenly too"


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no calibration images"):
        select_batches([], 0)


@pytest.mark.parametrize("number", [0, 1, 7, 100])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_every_image_is_checked_even_if_not_selected(number, value):
    spoiled = numbered(4096, 32)
    select_batches(iter(spoiled), 4096)
    spoiled[number][3, 0] = value
    with pytest.raises(DataError, match=rf"NaN or infinity[\s\S]*after image {32 * number}\b"):
        select_batches(iter(spoiled), 4096)


def test_other_types_are_refused():
    with pytest.raises(DataError, match="not a batch of images"):
        select_batches([np.ones((2, 3))], 2)
