"""What groups cost. The oracle is brute force: one whole quantized network in onnxruntime for every number.

The networks are random: a stem of convolutions, blocks with residual branches (Q, K, V of one norm; products of two
activations; a depthwise convolution), a class token expanded to the batch by the shape of the image, as exporters write it.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib import TensorScale, insert_qdq, plan_quantization, sqnr_db
from calib.calibration_table import CalibrationTable
from calib.errors import ArtifactError, GraphError, InputError
from calib.graph import index_graph
from calib.graph_segments import SegmentRuns, prefix, split_at
from calib.ort_session import TappedGraph
from calib.qdq_placement import QuantPlan
from calib.sensitivity import group_nodes, measure_sensitivity, rank_groups

C, TOKENS, BLOCKS = 8, 16, 3
TOLERANCE_DB = 0.01  # kernels add in another order, and a few values on the edge of a step round the other way


def block(i, x):
    """Nodes and output of a block over x (B, 17, C)."""
    n, p = h.make_node, f"b{i}"
    nodes = [
        n("LayerNormalization", [x, "ln_w", "ln_b"], [f"{p}.ln"], name=f"{p}/norm"),
        n("MatMul", [f"{p}.ln", f"{p}.wq"], [f"{p}.q"], name=f"{p}/q"),
        n("MatMul", [f"{p}.ln", f"{p}.wk"], [f"{p}.k"], name=f"{p}/k"),
        n("MatMul", [f"{p}.ln", f"{p}.wv"], [f"{p}.v"], name=f"{p}/v"),
        n("Transpose", [f"{p}.k"], [f"{p}.kt"], name=f"{p}/kt", perm=[0, 2, 1]),
        n("MatMul", [f"{p}.kt", f"{p}.v"], [f"{p}.sum"], name=f"{p}/kv"),
        n("Div", [f"{p}.sum", "seventeen"], [f"{p}.kv"], name=f"{p}/mean"),
        n("MatMul", [f"{p}.q", f"{p}.kv"], [f"{p}.a"], name=f"{p}/qkv"),
        n("Add", [x, f"{p}.a"], [f"{p}.x1"], name=f"{p}/residual1"),
        n("Transpose", [f"{p}.x1"], [f"{p}.ct"], name=f"{p}/ct", perm=[0, 2, 1]),
        n("Conv", [f"{p}.ct", f"{p}.dw", f"{p}.db"], [f"{p}.c"], name=f"{p}/conv", group=C, pads=[1, 1]),
        n("Gelu", [f"{p}.c"], [f"{p}.g"], name=f"{p}/gelu"),
        n("Transpose", [f"{p}.g"], [f"{p}.gt"], name=f"{p}/gt", perm=[0, 2, 1]),
        n("MatMul", [f"{p}.gt", f"{p}.w2"], [f"{p}.f"], name=f"{p}/ffn"),
        n("Add", [f"{p}.x1", f"{p}.f"], [f"{p}.x2"], name=f"{p}/residual2"),
    ]
    return nodes, f"{p}.x2"


def constants(seed):
    rng = np.random.default_rng(seed)

    def draw(*shape, fan):
        return (1.5 * rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    found = {
        "w_stem": draw(C, 3, 3, 3, fan=27),
        "w_stem2": draw(C, C, 3, 3, fan=9 * C),
        "token": draw(1, 1, C, fan=1),
        "to_tokens": np.array([0, C, TOKENS], np.int64),
        "first": np.array([0], np.int64),
        "token_shape": np.array([1, C], np.int64),
        "ln_w": np.ones(C, np.float32),
        "ln_b": np.zeros(C, np.float32),
        "seventeen": np.array(17, np.float32),
        "axes": np.array([1], np.int64),
        "w_head": draw(5, C, fan=C),
    }
    for i in range(BLOCKS):
        found |= {f"b{i}.{w}": draw(C, C, fan=C) for w in ("wq", "wk", "wv", "w2")}
        found |= {f"b{i}.dw": draw(C, 1, 3, fan=3), f"b{i}.db": draw(C, fan=4)}
    return found


def network(build, seed=0, skip=False):
    """skip: the image's tokens are added again before the head, so that no tensor between is a cut."""
    n = h.make_node
    nodes = [
        n("Shape", ["image"], ["shape"], name="shape"),
        n("Conv", ["image", "w_stem"], ["c0"], name="stem/conv1", pads=[1, 1, 1, 1]),
        n("Gelu", ["c0"], ["g0"], name="stem/gelu"),
        n("Conv", ["g0", "w_stem2"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),  # unnamed on purpose
        n("Reshape", ["c1", "to_tokens"], ["r1"], name="reshape"),
        n("Transpose", ["r1"], ["t1"], name="transpose", perm=[0, 2, 1]),
        n("Gather", ["shape", "first"], ["batch"], name="gather"),
        n("Concat", ["batch", "token_shape"], ["wanted"], name="wanted", axis=0),
        n("Expand", ["token", "wanted"], ["tokens"], name="expand"),
        n("Concat", ["t1", "tokens"], ["x"], name="join", axis=1),  # (B, 17, C)
    ]
    x = "x"
    for i in range(BLOCKS):
        added, x = block(i, x)
        nodes += added
    if skip:
        nodes.append(n("Add", [x, "x"], ["skipped"], name="skip"))
        x = "skipped"
    nodes += [
        n("ReduceMean", [x, "axes"], ["pooled"], name="pool", keepdims=0),
        n("Gemm", ["pooled", "w_head"], ["logits"], name="head", transB=1),
    ]
    return build(nodes, constants(seed), [("image", T.FLOAT, ["b", 3, 8, 8])], [("logits", T.FLOAT, ["b", 5])])


def table_of(model, plan, images, shrink=0.9):
    values = TappedGraph(model, plan.activations)(images)
    scales = {name: TensorScale.from_amax(shrink * float(np.abs(v).max()), name, "minmax") for name, v in values.items()}
    return CalibrationTable("o", "d", len(images), "minmax", scales)


def logits(model, images, output="logits"):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([output], {session.get_inputs()[0].name: images})[0]


def restricted(plan, nodes):
    return QuantPlan(tuple(p for p in plan.points if p.node in nodes))


def brute_force(model, table, plan, nodes, images):
    return sqnr_db(logits(model, images), logits(insert_qdq(model, table, restricted(plan, nodes)), images))


def agrees(found, wanted):
    return abs(found - wanted) <= TOLERANCE_DB


@pytest.fixture
def few():
    return np.random.default_rng(3).normal(size=(6, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def measured(make_model, few):
    model = network(make_model)
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    return model, plan, table, measure_sensitivity(model, table, plan, [few], threads=1)


def segments_of(model, images):
    return len(SegmentRuns(model, group_nodes(plan_quantization(model)), [images], 1).segments)


def check_against_brute_force(model, plan, table, groups, images):
    for group in groups:
        assert agrees(group.isolated_db, brute_force(model, table, plan, group.nodes, images)), group.nodes
    assert sorted(name for group in groups for name in group.nodes) == sorted(plan.nodes)


def test_isolated_noise_equals_that_of_whole_networks(measured, few):
    check_against_brute_force(*measured, few)


@pytest.mark.parametrize("seed", [1, 2])
def test_other_weights_agree_too(make_model, few, seed):
    model = network(make_model, seed)
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    check_against_brute_force(model, plan, table, measure_sensitivity(model, table, plan, [few], threads=2), few)


def test_the_comparison_fails_for_another_group_and_other_scales(measured, few):
    model, plan, table, groups = measured
    one = groups[0].isolated_db
    assert agrees(one, brute_force(model, table, plan, groups[0].nodes, few))
    for group in groups[1:]:
        assert not agrees(one, brute_force(model, table, plan, group.nodes, few))
    for factor in (0.5, 2.0):
        other = table_of(model, plan, few, shrink=0.9 * factor)
        assert not agrees(one, brute_force(model, other, plan, groups[0].nodes, few))


def test_fewer_macs_are_run_than_one_forward_per_group(make_model, few, monkeypatch):
    """MACs by the sessions that were called, counted from the outside."""
    from calib.macs import count_macs
    from calib.ort_session import GraphSession

    model = network(make_model)
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    macs, run = count_macs(model).by_name, 0
    made, call = GraphSession.__init__, GraphSession.__call__

    def init(self, graph, **settings):
        made(self, graph, **settings)
        self.macs = sum(macs.get(name, 0) for name in index_graph(graph).names)

    def counted(self, tensors):
        nonlocal run
        run += self.macs
        return call(self, tensors)

    monkeypatch.setattr(GraphSession, "__init__", init)
    monkeypatch.setattr(GraphSession, "__call__", counted)
    groups = measure_sensitivity(model, table, plan, [few], threads=1)
    assert segments_of(model, few) > 2 * BLOCKS
    assert 1 < run / sum(macs.values()) < len(groups)


def test_noise_read_at_cuts_ranks_like_that_of_whole_networks(measured, few):
    """Read at one cut in three, on fewer runs; the control: noise at the cuts themselves, not taken to the outputs."""
    model, plan, table, exact = measured
    estimated = measure_sensitivity(model, table, plan, [few], threads=1, stops=3)
    wanted, found = (np.array([group.isolated_db for group in groups]) for groups in (exact, estimated))
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 2
    assert np.corrcoef(wanted, found)[0, 1] > 0.9
    direct = [i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if agrees(a, b)]
    assert len(direct) < len(wanted), "some are estimated"
    assert len(wanted) - 1 in direct, "the last ones go to the outputs themselves"
    runs = SegmentRuns(model, group_nodes(plan), [few], 1)
    assert len(runs.stops(3)) == 3
    assert all(runs.segments[stop - 1].cut for stop in runs.stops(3))


def test_the_group_alone_at_a_cut_is_exact_where_noise_passes_in_proportion(make_model, few):
    """One group per cut, and noise far below the signal: its own errors are those that are taken to the outputs."""
    n = h.make_node
    rng = np.random.default_rng(1)
    nodes, tensor = [n("GlobalAveragePool", ["image"], ["p"], name="pool"), n("Flatten", ["p"], ["t0"], name="flat")], "t0"
    for i in range(4):
        nodes.append(n("MatMul", [tensor, f"w{i}"], [f"m{i}"], name=f"layer{i}"))
        tensor = "logits" if i == 3 else f"t{i + 1}"
        nodes.append(n("Identity" if i == 3 else "Softplus", [f"m{i}"], [tensor], name=f"after{i}"))
    weights = {f"w{i}": rng.normal(size=(3, 3)).astype(np.float32) for i in range(4)}
    model = make_model(nodes, weights, [("image", T.FLOAT, ["b", 3, 8, 8])], [("logits", T.FLOAT, ["b", 3])])
    plan = plan_quantization(model)
    table = table_of(model, plan, few, shrink=1.0)
    for group in measure_sensitivity(model, table, plan, [few], threads=1, stops=4):
        exact = brute_force(model, table, plan, group.nodes, few)
        assert abs(group.isolated_db - exact) < 0.5, group.nodes


@pytest.mark.parametrize("stops", [0, 3])
def test_of_several_outputs_the_noisiest_counts(make_model, few, stops):
    """One is computed early and read on, one early and not, one last."""
    model = network(make_model)
    model.graph.node.insert(-2, h.make_node("MatMul", ["b0.x2", "b1.wq"], ["side"], name="side"))
    for name, shape in (("b1.x1", ["b", 17, C]), ("side", ["b", 17, C])):
        model.graph.output.append(h.make_tensor_value_info(name, T.FLOAT, shape))
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    groups = measure_sensitivity(model, table, plan, [few], threads=1, stops=stops)
    assert "side" in [node for group in groups for node in group.nodes]
    alone = measure_sensitivity(first_output(model), table, plan, [few], threads=1)
    for group, first in zip(groups, alone, strict=True):
        quantized = insert_qdq(model, table, restricted(plan, group.nodes))
        names = ("logits", "b1.x1", "side")
        by_output = [min(sqnr_db(logits(model, few, o), logits(quantized, few, o)), 300) for o in names]
        assert abs(group.isolated_db - min(by_output)) < (3 if stops else TOLERANCE_DB), group.nodes
        assert agrees(first.isolated_db, by_output[0])
    assert any(not agrees(group.isolated_db, first.isolated_db) for group, first in zip(groups, alone, strict=True))


def first_output(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[1:]
    return copy


def test_without_a_cut_one_long_segment_gives_the_same(make_model, few):
    model = network(make_model, skip=True)
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    result = measure_sensitivity(model, table, plan, [few], threads=1)
    assert segments_of(model, few) == 4, "the two convolutions, all that the long way round spans, the head"
    check_against_brute_force(model, plan, table, result, few)


@pytest.mark.parametrize(("tensor", "after"), [("g0", "g0"), ("image", "t1"), ("image", "b1.x1")])
def test_shapes_are_not_a_path(make_model, few, tensor, after):
    """The class token's batch from the shape of an inner tensor, and from that of the image when it is read late."""
    model = network(make_model)
    shape = next(n for n in model.graph.node if n.op_type == "Shape")
    model.graph.node.remove(shape)
    shape.input[0] = tensor
    if after == "b1.x1":  # read late by something that changes nothing
        later = [
            h.make_node("Size", ["image"], ["size"], name="size"),
            h.make_node("Cast", ["size"], ["f"], name="cast", to=T.FLOAT),
        ]
        later += [
            h.make_node("Mul", ["f", "zero"], ["nothing"], name="mul"),
            h.make_node("Add", [after, "nothing"], ["same"], name="add"),
        ]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero"))
        insert_after(model, after, later)
        next(n for n in model.graph.node if n.name == "b1/ct").input[0] = "same"
    insert_after(model, tensor if after == "b1.x1" else after, [shape])
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    result = measure_sensitivity(model, table, plan, [few], threads=1)
    assert segments_of(model, few) > 2 * BLOCKS
    check_against_brute_force(model, plan, table, result, few)


def insert_after(model, tensor, nodes):
    at = next((i + 1 for i, n in enumerate(model.graph.node) if tensor in n.output), 0)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(at + offset, node)


def test_constants_may_be_nodes(make_model, few):
    """As exporters write them: Constant nodes before everything, and one that is computed from a constant."""
    model = network(make_model)
    nodes = [h.make_node("Constant", [], [t.name], name=f"constant/{t.name}", value=t) for t in model.graph.initializer]
    del model.graph.initializer[:]
    next(n for n in nodes if n.output[0] == "seventeen").output[0] = "half"
    nodes.append(h.make_node("Identity", ["half"], ["seventeen"], name="identity"))
    insert_after(model, "image", nodes)
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    result = measure_sensitivity(model, table, plan, [few], threads=1)
    assert segments_of(model, few) > 2 * BLOCKS
    check_against_brute_force(model, plan, table, result, few)


def test_the_segments_chain_up_to_the_whole_graph(make_model, few):
    model = network(make_model)
    runs = SegmentRuns(model, group_nodes(plan_quantization(model)), [few], 1)
    named = [name for s in runs.segments for name in s.nodes]
    assert named == list(index_graph(model).names)
    np.testing.assert_allclose(runs.output(), logits(model, few), rtol=1e-4, atol=1e-5)


ORDERED = ("image", "c0", "g0", "t1", "x", "b0.ln", "b0.k", "b0.kv", "b0.a", "b1.x1", "b1.x2", "b2.gt", "pooled")
"""Tensors of `network` in the order in which they are made, some beside others that live on."""


def session_of(model):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def tensors_of(model, images, names):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "image")
    found = session_of(copy).run([name for name in names if name != "image"], {"image": images})
    return {"image": images, **dict(zip([name for name in names if name != "image"], found, strict=True))}


def one_after_the_other(segments, images):
    """The tensor in which each segment ends, with nothing available but the state before it."""
    state, found = {"image": images}, {}
    for tensor, segment in segments.items():
        made = {}
        if segment.nodes:
            session = session_of(segment.model)
            outputs = [v.name for v in session.get_outputs()]
            values = session.run(outputs, {v.name: state[v.name] for v in session.get_inputs()})
            made = dict(zip(outputs, values, strict=True))
        assert not set(made) & set(segment.passed)
        state = {**{name: state[name] for name in segment.passed}, **made}
        found[tensor] = state[tensor]
    return found


def agree(found, wanted):
    return {name: bool(np.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)) for name in found}


@pytest.mark.parametrize("skip", [False, True])
def test_segments_that_end_anywhere_give_the_tensors_of_the_whole_graph(make_model, few, skip):
    model = network(make_model, skip=skip)
    before = model.SerializeToString()
    segments = split_at(model, ORDERED[::-1])
    assert tuple(segments) == ORDERED, "in the order in which the graph makes them"
    assert model.SerializeToString() == before
    assert all(agree(one_after_the_other(segments, few), tensors_of(model, few, ORDERED)).values())
    names = index_graph(model).names
    assert [name for s in segments.values() for name in s.nodes] == list(names[: names.index("head")])
    assert segments["image"].nodes == ()
    assert "b0.x1" not in segments["b2.gt"].passed, "what nobody reads any more is let go"
    assert {"x", "b0.q"} <= {*segments["b0.k"].passed, *(v.name for v in segments["b0.k"].model.graph.output)}


@pytest.mark.parametrize("at", range(1, len(ORDERED)))
def test_a_changed_segment_changes_everything_after_it(make_model, few, at):
    """The control: one segment's output doubled."""
    model = network(make_model)
    segments = split_at(model, ORDERED)
    graph = segments[ORDERED[at]].model.graph
    maker = next(n for n in graph.node if ORDERED[at] in n.output)
    maker.output[0] = "halved"
    graph.node.append(h.make_node("Add", ["halved", "halved"], [ORDERED[at]], name="doubled"))
    same = agree(one_after_the_other(segments, few), tensors_of(model, few, ORDERED))
    assert all(same[t] for t in ORDERED[:at])
    assert not same[ORDERED[at]]


def test_tensors_of_one_node_end_segments_of_which_one_is_empty(make_model):
    nodes = [
        h.make_node("Split", ["image"], ["a", "b"], name="split", num_outputs=2, axis=1),
        h.make_node("MatMul", ["a", "w"], ["c"], name="c"),
        h.make_node("MatMul", ["b", "w"], ["d"], name="d"),
        h.make_node("Add", ["c", "d"], ["y"], name="y"),
    ]
    model = make_model(nodes, {"w": np.eye(3, dtype=np.float32)}, [("image", T.FLOAT, ["n", 6])], [("y", T.FLOAT, ["n", 3])])
    segments = split_at(model, ("a", "b"))
    assert [s.nodes for s in segments.values()] == [("split",), ()]
    images = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    assert all(agree(one_after_the_other(segments, images), tensors_of(model, images, ("a", "b"))).values())


def test_several_inputs_cannot_be_cut_anywhere(make_model):
    nodes = [h.make_node("Add", ["image", "other"], ["t"]), h.make_node("Relu", ["t"], ["y"])]
    inputs = [("image", T.FLOAT, ["n"]), ("other", T.FLOAT, ["n"])]
    with pytest.raises(GraphError, match=r"one input[\s\S]*image, other"):
        split_at(make_model(nodes, {}, inputs, [("y", T.FLOAT, ["n"])]), ("t",))


def test_groups_share_activations(measured):
    _, plan, _, groups = measured
    assert group_nodes(plan) == tuple(g.nodes for g in groups)
    assert [g.nodes[0] for g in groups[:5]] == ["stem/conv1", "c1", "b0/q", "b0/kv", "b0/qkv"]
    assert groups[2].nodes == ("b0/q", "b0/k", "b0/v")
    assert groups[2].macs == 3 * 17 * C * C


def test_groups_are_joined_through_both_operands(make_model):
    n = h.make_node
    nodes = [
        n("MatMul", ["image", "w"], ["a"], name="a"),
        n("Relu", ["a"], ["r"], name="r"),
        n("Neg", ["a"], ["m"], name="m"),
        n("MatMul", ["r", "w"], ["b"], name="b"),
        n("MatMul", ["m", "w"], ["c"], name="c"),
        n("MatMul", ["r", "m"], ["d"], name="d"),
        n("Sum", ["b", "c", "d"], ["logits"], name="sum"),
    ]
    model = make_model(nodes, {"w": np.eye(4, dtype=np.float32)}, [("image", T.FLOAT, [4, 4])], [("logits", T.FLOAT, [4, 4])])
    assert group_nodes(plan_quantization(model)) == (("a",), ("b", "c", "d"))


def test_batches_of_any_size(make_model, few):
    model = network(make_model)
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    one = measure_sensitivity(model, table, plan, [few[:5]], threads=1)
    many = measure_sensitivity(model, table, plan, iter([few[:2], few[2:4], few[4:5]]), threads=1)
    for a, b in zip(one, many, strict=True):
        assert agrees(a.isolated_db, b.isolated_db)


def test_the_result_repeats(measured, few):
    model, plan, table, groups = measured
    done = []
    again = measure_sensitivity(model, table, plan, [few], threads=1, progress=lambda *count: done.append(count))
    assert again == groups
    assert done == [(i + 1, len(groups)) for i in range(len(groups))]


def test_ranking(measured):
    _, _, _, groups = measured
    cost = {g.nodes: g for g in groups}
    ranked = rank_groups(groups)
    assert sorted(ranked) == sorted(cost)
    per_mac = [10 ** (-cost[n].isolated_db / 10) / cost[n].macs for n in ranked]
    assert per_mac == sorted(per_mac, reverse=True)


def two_inputs(make_model, few):
    model = network(make_model)
    model.graph.input.append(h.make_tensor_value_info("other", T.FLOAT, [1]))
    return model, few


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (two_inputs, "one input"),
        (lambda m, few: (network(m), few[:0]), "no images"),
        (lambda m, few: (network(m), few * np.nan), "NaN or infinity"),
        (lambda m, few: (network(m), few[:, :2]), "does not take"),
    ],
)
def test_refusals(make_model, few, damage, message):
    healthy = network(make_model)
    plan = plan_quantization(healthy)
    model, images = damage(make_model, few)
    with pytest.raises(InputError, match=message):
        measure_sensitivity(model, table_of(healthy, plan, few), plan, [images] if len(images) else [], threads=1)


def test_a_table_without_a_scale_and_a_foreign_plan_are_refused(make_model, few):
    model = network(make_model)
    plan = plan_quantization(model)
    table = table_of(model, plan, few)
    del table.tensors["b1.ln"]
    with pytest.raises(ArtifactError, match="no scale"):
        measure_sensitivity(model, table, plan, [few], threads=1)
    other = network(make_model, skip=True)
    foreign = QuantPlan(tuple(p for p in plan.points if p.node != "head"))
    other.graph.node[next(i for i, n in enumerate(other.graph.node) if n.name == "b1/q")].name = "renamed"
    with pytest.raises(GraphError, match="another graph"):
        measure_sensitivity(other, table_of(model, plan, few), foreign, [few], threads=1)


def test_layers_that_no_output_depends_on_cost_nothing(make_model, few):
    whole, model = network(make_model), network(make_model)
    model.graph.output.insert(0, h.make_tensor_value_info("r1", T.FLOAT, None))
    alone = network(make_model)
    del alone.graph.output[:]
    alone.graph.output.append(h.make_tensor_value_info("r1", T.FLOAT, None))
    plan = plan_quantization(whole)
    table = table_of(whole, plan, few)
    measured = {group.nodes: group for group in measure_sensitivity(first_output(model), table, plan, [few], threads=1)}
    assert tuple(measured) == group_nodes(plan)
    produced = set(index_graph(prefix(alone, ("r1",))).names)
    late = [nodes for nodes in measured if not produced & set(nodes)]
    early = [nodes for nodes in measured if produced & set(nodes)]
    assert late
    assert early
    assert all(measured[nodes].isolated_db == 300.0 for nodes in late)
    assert all(measured[nodes].isolated_db < 100.0 for nodes in early)
    assert all(group.macs > 0 for group in measured.values())
