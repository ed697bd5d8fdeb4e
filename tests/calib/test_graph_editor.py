"""Oracle: ONNX's reference evaluator on the graph as it was, plus the vector by hand."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from calib.graph import tensors_read
from calib.graph_editor import GraphEditor, add_channels, order_readers
from calib.graph_segments import prefix

X = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
IMAGE = np.random.default_rng(6).normal(size=(2, 4, 5, 5)).astype(np.float32)
VECTOR = np.array([1.0, -2.0, 0.5, 4.0, -0.25, 3.0], np.float32)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def outputs(model, values):
    onnx.checker.check_model(model, full_check=True)
    return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: values})


def initializers(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.fixture
def two_readers(make_model):
    """One weight, read by two nodes."""
    nodes = [h.make_node("MatMul", ["x", "w"], ["a"], name="first"), h.make_node("MatMul", ["x", "w"], ["b"], name="second")]
    shape = ("x", T.FLOAT, ["n", 4])
    return make_model(nodes, {"w": draw(4, 6)}, [shape], [(name, T.FLOAT, ["n", 6]) for name in "ab"])


def test_a_constant_changes_for_one_reader_alone(two_readers):
    before = two_readers.SerializeToString()
    editor = GraphEditor(two_readers)
    editor.set_constant("first", 1, 2 * editor.constant("first", 1), "doubled")
    np.testing.assert_array_equal(editor.constant("first", 1), 2 * draw(4, 6))
    np.testing.assert_array_equal(editor.constant("second", 1), draw(4, 6))
    first, second = outputs(editor.finish(), X)
    np.testing.assert_array_equal(second, X @ draw(4, 6))
    np.testing.assert_allclose(first, 2 * (X @ draw(4, 6)), rtol=1e-6)
    assert two_readers.SerializeToString() == before, "the graph that came is left alone"


def test_unread_constants_are_removed(two_readers):
    editor = GraphEditor(two_readers)
    for factor, suffix in ((2, "doubled"), (3, "sextuple")):  # twice: the first change is itself replaced
        for node in ("first", "second"):
            editor.set_constant(node, 1, factor * editor.constant(node, 1), suffix)
    assert set(initializers(editor.finish())) == {"w/sextuple", "w/sextuple2"}, "named after the origin, not after each other"


def test_unread_constant_nodes_are_removed_too(make_model):
    constant = h.make_node("Constant", [], ["w"], value=numpy_helper.from_array(draw(4, 6)))
    nodes = [constant, h.make_node("MatMul", ["x", "w"], ["y"], name="mm")]
    model = make_model(nodes, {}, [("x", T.FLOAT, ["n", 4])], [("y", T.FLOAT, ["n", 6])])
    editor = GraphEditor(model)
    assert editor.is_constant("mm", 1)
    assert not editor.is_constant("mm", 0)
    assert not editor.is_constant("mm", 2)
    editor.set_constant("mm", 1, 2 * editor.constant("mm", 1), "doubled")
    changed = editor.finish()
    np.testing.assert_allclose(outputs(changed, X)[0], 2 * (X @ draw(4, 6)), rtol=1e-6)
    assert [n.op_type for n in changed.graph.node] == ["MatMul"]


def linear(make_model, kind):
    """A graph with one layer of six outputs, the layer's name, and the values to feed."""
    image, rows = ("x", T.FLOAT, ["n", 4, 5, 5]), ("x", T.FLOAT, ["n", 4])
    conv = {"w": draw(6, 4, 3, 3)}
    made = {
        "Conv with bias": ([h.make_node("Conv", ["x", "w", "b"], ["y"], name="layer")], {**conv, "b": draw(6)}),
        "Conv without": ([h.make_node("Conv", ["x", "w"], ["y"], name="layer")], conv),
        "Conv with a computed bias": (
            [h.make_node("Abs", ["b"], ["c"]), h.make_node("Conv", ["x", "w", "c"], ["y"], name="layer")],
            {**conv, "b": draw(6)},
        ),
        "Gemm with bias": ([h.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")], {"w": draw(4, 6), "b": draw(6)}),
        "Gemm with bias 1": ([h.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")], {"w": draw(4, 6), "b": draw(1)}),
        "Gemm without": ([h.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=1)], {"w": draw(6, 4)}),
        "Gemm with alpha": (
            [h.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", alpha=0.5, beta=2.0)],
            {"w": draw(4, 6), "b": draw(6)},
        ),
        "MatMul and Add": (
            [h.make_node("MatMul", ["x", "w"], ["m"], name="layer"), h.make_node("Add", ["b", "m"], ["y"], name="add")],
            {"w": draw(4, 6), "b": draw(1, 6)},
        ),
        "MatMul and Add of one number": (
            [h.make_node("MatMul", ["x", "w"], ["m"], name="layer"), h.make_node("Add", ["m", "b"], ["y"], name="add")],
            {"w": draw(4, 6), "b": draw(1)},
        ),
        "MatMul without": ([h.make_node("MatMul", ["x", "w"], ["y"], name="layer")], {"w": draw(4, 6)}),
        "MatMul without a name": ([h.make_node("MatMul", ["x", "w"], ["y"])], {"w": draw(4, 6)}),
    }
    nodes, constants = made[kind]
    is_conv = kind.startswith("Conv")
    result = ("y", T.FLOAT, ["n", 6, 3, 3] if is_conv else ["n", 6])
    model = make_model(nodes, constants, [image if is_conv else rows], [result])
    return model, "y" if kind.endswith("name") else "layer", IMAGE if is_conv else X


INTO_BIAS = {
    "Conv with bias": 1,
    "Gemm with bias": 1,
    "Gemm with bias 1": 1,
    "MatMul and Add": 2,
    "Conv without": 1,
    "Gemm without": 1,
}
KINDS = (
    *INTO_BIAS,
    *(
        "Conv with a computed bias",
        "Gemm with alpha",
        "MatMul and Add of one number",
        "MatMul without",
        "MatMul without a name",
    ),
)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_added_wherever_the_bias_is(make_model, kind):
    model, name, values = linear(make_model, kind)
    editor = GraphEditor(model)
    add_channels(editor, name, VECTOR, "test")
    changed = editor.finish()
    by_hand = outputs(model, values)[0] + (VECTOR.reshape(-1, 1, 1) if values is IMAGE else VECTOR)
    np.testing.assert_allclose(outputs(changed, values)[0], by_hand, rtol=1e-5, atol=1e-5)
    more = len(changed.graph.node) - len(model.graph.node)
    assert more == (0 if kind in INTO_BIAS else 1), "a node is added only where no bias can take it"


@pytest.mark.parametrize("kind", KINDS)
def test_channels_add_up(make_model, kind):
    """The control of the test above: the result does depend on the vector, and a second one comes on top."""
    model, name, values = linear(make_model, kind)
    editor = GraphEditor(model)
    add_channels(editor, name, VECTOR, "test")
    add_channels(editor, name, 2 * VECTOR, "test")
    gained = outputs(editor.finish(), values)[0] - outputs(model, values)[0]
    shape = (-1, 1, 1) if values is IMAGE else (-1,)
    np.testing.assert_allclose(gained, np.broadcast_to(3 * VECTOR.reshape(shape), gained.shape), rtol=1e-4, atol=1e-5)


def test_a_sum_that_something_else_reads_without_the_bias_is_not_moved_into_the_bias(make_model):
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["m"], name="layer"),
        h.make_node("Add", ["m", "b"], ["y"], name="add"),
        h.make_node("Relu", ["m"], ["z"], name="relu"),
    ]
    inputs, ends = [("x", T.FLOAT, ["n", 4])], [(name, T.FLOAT, ["n", 6]) for name in "yz"]
    for ending in (ends, [ends[0], ("m", *ends[0][1:])]):  # another node reads it, or the user does
        model = make_model(nodes, {"w": draw(4, 6), "b": draw(6)}, inputs, ending)
        editor = GraphEditor(model)
        add_channels(editor, "layer", VECTOR, "test")
        product = X @ draw(4, 6) + VECTOR
        found = outputs(editor.finish(), X)
        np.testing.assert_allclose(found[0], product + draw(6), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], np.maximum(product, 0) if ending is ends else product, rtol=1e-5, atol=1e-6)


def branching(make_model):
    """A MatMul and its bias, and an If that reads the MatMul's output from inside."""
    inner = h.make_graph(
        [h.make_node("Neg", ["m"], ["inside"])], "then", [], [h.make_tensor_value_info("inside", T.FLOAT, None)]
    )
    other = h.make_graph(
        [h.make_node("Abs", ["m"], ["within"])], "else", [], [h.make_tensor_value_info("within", T.FLOAT, None)]
    )
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["m"], name="layer"),
        h.make_node("Add", ["m", "b"], ["y"], name="add"),
        h.make_node("If", ["yes"], ["z"], name="if", then_branch=inner, else_branch=other),
    ]
    constants = {"w": draw(4, 6), "b": draw(6), "yes": np.array(True)}
    return make_model(nodes, constants, [("x", T.FLOAT, ["n", 4])], [(name, T.FLOAT, ["n", 6]) for name in "yz"])


def test_readers_in_subgraphs_count(make_model):
    editor = GraphEditor(branching(make_model))
    assert {"m", "y", "z"} <= editor.read_elsewhere
    assert "x" not in editor.read_elsewhere
    add_channels(editor, "layer", VECTOR, "test")
    total, negative = outputs(editor.finish(), X)
    np.testing.assert_allclose(total, X @ draw(4, 6) + draw(6) + VECTOR, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(negative, -(X @ draw(4, 6) + VECTOR), rtol=1e-5, atol=1e-6)


def test_what_is_added_to_an_output_reaches_every_reader(make_model):
    nodes = [h.make_node("MatMul", ["x", "w"], ["m"]), *(h.make_node(op, ["m"], [op]) for op in ("Relu", "Neg"))]
    ends = [(name, T.FLOAT, ["n", 6]) for name in ("m", "Relu", "Neg")]
    model = make_model(nodes, {"w": draw(4, 6)}, [("x", T.FLOAT, ["n", 4])], ends)
    editor = GraphEditor(model)
    editor.add_to_output("m", VECTOR)
    changed = editor.finish()
    total = X @ draw(4, 6) + VECTOR
    for found, by_hand in zip(outputs(changed, X), (total, np.maximum(total, 0), -total), strict=True):
        np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)
    assert GraphEditor(changed).node("m").op_type == "MatMul", "a node without a name keeps the one it went by"


@pytest.mark.parametrize("tensor", ["x", "m"])
def test_a_chain_after_a_tensor_leaves_its_readers_alone(make_model, tensor):
    nodes = [h.make_node("MatMul", ["x", "w"], ["m"], name="mm"), h.make_node("Neg", ["m"], ["y"], name="neg")]
    model = make_model(nodes, {"w": draw(4, 4)}, [("x", T.FLOAT, ["n", 4])], [("y", T.FLOAT, ["n", 4])])
    editor = GraphEditor(model)
    factors, shift = np.array([1, 2, 4, 8], np.float32), np.ones(1, np.float32)
    end = editor.append_operators(tensor, [("Mul", factors), ("Add", shift)], "moved")
    nothing = editor.append_operators(tensor, [], "nothing")
    changed = editor.finish()
    assert nothing == tensor
    np.testing.assert_array_equal(outputs(changed, X)[0], outputs(model, X)[0])
    changed.graph.output.extend(
        [h.make_tensor_value_info(end, T.FLOAT, ["n", 4]), h.make_tensor_value_info("m", T.FLOAT, ["n", 4])]
    )
    _, found, product = outputs(changed, X)
    np.testing.assert_array_equal(found, (X if tensor == "x" else product) * factors + 1)


def test_a_chain_and_a_sum_at_one_node_are_put_in_order(make_model):
    """The chain reads the sum, whichever of them is asked for first: onnx.checker refuses a graph out of order."""
    nodes = [h.make_node("MatMul", ["x", "w"], ["m"], name="mm"), h.make_node("Neg", ["m"], ["y"], name="neg")]
    model = make_model(nodes, {"w": draw(4, 6)}, [("x", T.FLOAT, ["n", 4])], [("y", T.FLOAT, ["n", 6])])
    found = []
    for chain_first in (True, False):
        editor = GraphEditor(model)
        steps = [lambda e=editor: e.add_to_output("mm", VECTOR)]
        steps.insert(
            0 if chain_first else 1,
            lambda e=editor: e.node("neg").input.__setitem__(0, e.append_operators("m", [("Mul", VECTOR)], "c")),
        )
        for step in steps:
            step()
        found += outputs(editor.finish(), X)
    np.testing.assert_allclose(found[0], -(X @ draw(4, 6) + VECTOR) * VECTOR, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[0], found[1])


def test_names_never_collide(make_model):
    """Every name that an edit would like is taken already: by a tensor, an initializer, a node, the input."""
    nodes = [
        h.make_node("MatMul", ["w/s", "w"], ["m"], name="m/shift"),
        h.make_node("Add", ["m", "m/unshifted"], ["m/c"], name="m/c/constant"),
        h.make_node("Neg", ["m/c"], ["layer/bias/s"], name="m/c2"),
    ]
    constants = {"w": draw(4, 6), "m/unshifted": draw(6, 1).reshape(1, 6)}
    model = make_model(nodes, constants, [("w/s", T.FLOAT, ["n", 4])], [("layer/bias/s", T.FLOAT, ["n", 6])])
    editor = GraphEditor(model)
    editor.set_constant("m/shift", 1, 2 * editor.constant("m/shift", 1), "s")
    editor.add_to_output("m/shift", VECTOR)
    end = editor.append_operators("m", [("Mul", VECTOR), ("Add", VECTOR)], "c")
    editor.node("m/c/constant").input[0] = end
    changed = editor.finish()
    names = [n.name for n in changed.graph.node]
    tensors = [*initializers(changed), *(o for n in changed.graph.node for o in n.output), changed.graph.input[0].name]
    assert len(set(names)) == len(names)
    assert len(set(tensors)) == len(tensors)
    by_hand = -((2 * (X @ draw(4, 6)) + VECTOR) * VECTOR + VECTOR + constants["m/unshifted"])
    np.testing.assert_allclose(outputs(changed, X)[0], by_hand, rtol=1e-5, atol=1e-5)


def test_old_graphs_list_their_constants_as_inputs_and_lose_both(two_readers):
    two_readers.ir_version = 3
    two_readers.graph.input.append(h.make_tensor_value_info("w", T.FLOAT, [4, 6]))
    editor = GraphEditor(two_readers)
    for node in ("first", "second"):
        editor.set_constant(node, 1, draw(4, 6), "same")
    assert [v.name for v in editor.finish().graph.input] == ["x"]
    cut = prefix(two_readers, ("x",))
    assert [v.name for v in cut.graph.input] == ["x"]


@pytest.mark.parametrize("tensors", [("g0",), ("ln",), ("kt", "c1"), ("logits",), ("image", "xn")])
def test_a_prefix_computes_the_same_tensors(tiny, images, tensors):
    cut = prefix(tiny, tensors)
    whole = onnx.ModelProto()
    whole.CopyFrom(tiny)
    del whole.graph.output[:]
    made = [t for t in tensors if t != "image"]
    whole.graph.output.extend(onnx.ValueInfoProto(name=t) for t in made)
    assert [v.name for v in cut.graph.output] == made
    for found, expected in zip(*(ReferenceEvaluator(m).run(None, {"image": images[:4]}) for m in (cut, whole)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_prefix_holds_nothing_else(tiny):
    cut = prefix(tiny, ("g0",))
    assert [n.op_type for n in cut.graph.node] == ["Conv", "Gelu"]
    assert set(initializers(cut)) == {"w_stem"}
    assert cut.opset_import == tiny.opset_import
    assert len(prefix(tiny, ("logits",)).graph.node) == len(tiny.graph.node)


def test_a_prefix_keeps_what_subgraphs_read(make_model):
    model = branching(make_model)
    cut = prefix(model, ("z",))
    assert [n.name for n in cut.graph.node] == ["layer", "if"]
    assert tensors_read(cut.graph.node, cut.graph.output) >= {"x", "w", "yes", "m", "z"}
    np.testing.assert_allclose(ReferenceEvaluator(cut).run(None, {"x": X})[0], -(X @ draw(4, 6)), rtol=1e-6)


def test_readers_of_inner_tensors_run_as_soon_as_they_can(tmp_path):
    chain = [h.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"], name=f"tanh{i}") for i in range(6)]
    readers = [h.make_node("ReduceMax", [f"t{i}"], [f"max{i}"], name=f"max{i}", keepdims=0) for i in (4, 0, 2)]
    readers.append(h.make_node("Sub", ["max2", "max4"], ["difference"], name="difference"))
    ordered = order_readers(chain, readers)
    assert [node.name for node in ordered] == ["max4", "difference", "max2", "max0"]
    outputs = ["t6", "max0", "max2", "max4", "difference"]

    def ran(order):
        """Names of the nodes in the order in which ONNX Runtime runs them, and its outputs."""
        values = [h.make_tensor_value_info(name, T.FLOAT, None) for name in outputs]
        graph = h.make_graph([*chain, *order], "g", [h.make_tensor_value_info("t0", T.FLOAT, [3, 4])], values)
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {"t0": X})
        profile = json.loads(Path(session.end_profiling()).read_text())
        events = [event["name"].removesuffix("_kernel_time") for event in profile if event["cat"] == "Node"]
        return [name for name in events if name in {node.name for node in (*chain, *readers)}], found

    names, found = ran(ordered)
    assert names.index("max0") < names.index("tanh1")
    assert names.index("max2") < names.index("tanh3")
    assert names.index("difference") < names.index("tanh5")
    late, expected = ran(readers)
    assert late.index("max0") > late.index("tanh3"), "the order matters"
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
