"""`ufovit calibrate` on graphs of other kinds than that of `calibrate_files`: what it reports as INT8, what it does not judge.

Oracles: multiply-accumulates counted by hand, ONNX Runtime with optimizations off, onnx.checker.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from calibrate_files import held_out, sqnr_db
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
N = helper.make_node


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(1).normal(size=(96, 3, SIDE, SIDE)).astype(np.float32))
    return path


def save(path, nodes, outputs, opset=20, ir=10, **weights):
    """A graph on x (n, 3, 8, 8); a weight is given by its shape, and drawn, or as an array."""
    rng = np.random.default_rng(0)
    constants = {
        name: (rng.normal(size=value) / np.sqrt(np.prod(value[1:]))).astype(np.float32) if isinstance(value, tuple) else value
        for name, value in weights.items()
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    if ir == 3:
        graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    onnx.checker.check_model(path)
    return path


def stem(kernel=2):
    """(n, 3, 8, 8) -> relu (n, 8, 4, 4): 8 * 16 * 12 MACs; tokens (n, 16, 8)."""
    return [
        N("Conv", ["x", "w_stem"], ["c"], name="stem", strides=[kernel] * 2),
        N("Relu", ["c"], ["relu"]),
        N("Reshape", ["relu", "to_tokens"], ["flat"]),
        N("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
    ]


STEM = {"w_stem": (8, 3, 2, 2), "to_tokens": np.array([0, 8, -1])}
STEM_MACS = 8 * 16 * 12


def decoder(path):
    """67.5 % and more of the work is a ConvTranspose."""
    up = N("ConvTranspose", ["relu", "w_up"], ["y"], name="up", strides=[2, 2])
    return save(path, [*stem()[:2], up], ["y"], w_stem=(8, 3, 2, 2), w_up=(8, 16, 2, 2))


def attention(path):
    heads = N("Attention", ["tokens", "tokens", "tokens"], ["y"], name="heads", q_num_heads=2, kv_num_heads=2)
    return save(path, [*stem(), heads], ["y"], opset=23, ir=11, **STEM)


def einsum(path):
    return save(path, [*stem(), N("Einsum", ["tokens", "tokens"], ["y"], name="gram", equation="bnd,bmd->bnm")], ["y"], **STEM)


def behind_transpose(path):
    nodes = [N("Transpose", ["w_out"], ["w_t"], perm=[1, 0]), N("MatMul", ["tokens", "w_t"], ["y"], name="out")]
    return save(path, [*stem(), *nodes], ["y"], **STEM, w_out=(4, 8))


def branch(path):
    """A product of the main graph and one in a branch read the same weight."""
    bodies = [
        helper.make_graph([node], "b", [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)])
        for node in (N("MatMul", ["tokens", "w_out"], ["a"], name="inner"), N("Identity", ["tokens"], ["b"]))
    ]
    nodes = [
        N("ReduceMean", ["tokens"], ["mean"], keepdims=0),
        N("Greater", ["mean", "zero"], ["positive"]),
        N("If", ["positive"], ["chosen"], name="choose", then_branch=bodies[0], else_branch=bodies[1]),
        N("MatMul", ["tokens", "w_out"], ["main"], name="main"),
        N("Add", ["main", "chosen"], ["y"]),
    ]
    return save(path, [*stem(), *nodes], ["y"], **STEM, w_out=(8, 8), zero=np.float32(0))


@pytest.mark.parametrize(
    "case",
    [
        (decoder, "up", (0, 8 * 16 * 16 * 4), "TensorRT runs ConvTranspose in float"),
        (branch, "choose/then_branch/inner", (16 * 8 * 8, 16 * 8 * 8), "in a body of an If"),
    ],
)
def test_what_stays_in_float_is_named_with_share_and_reason(calibrate, images, tmp_path, capsys, case):
    make, layer, macs, reason = case  # macs beside the stem: in INT8, in float
    graph = make(tmp_path / "graph.onnx")
    share = (STEM_MACS + macs[0]) / (STEM_MACS + sum(macs))
    assert calibrate("--int8-floor", 0.1, graph=graph, images=images) == 0
    said = capsys.readouterr().out
    assert f"INT8         {share:.1%} of the multiply-accumulates" in said
    assert f"in float   {layer}: {1 - share:.2%} of the multiply-accumulates, " in said
    assert reason in said
    assert calibrate("--int8-floor", share + 0.001, graph=graph, images=images) == 1
    assert f"INT8 share NOT MET: {share:.1%}" in capsys.readouterr().out
    assert (tmp_path / "out/model.int8.onnx").is_file()


@pytest.mark.parametrize("make", [attention, einsum, behind_transpose])
def test_what_an_import_takes_apart_or_folds_runs_in_int8(calibrate, images, tmp_path, capsys, make):
    assert calibrate("--int8-floor", 1, graph=make(tmp_path / "graph.onnx"), images=images) == 0
    assert "INT8         100.0% of the multiply-accumulates" in capsys.readouterr().out


@pytest.mark.parametrize("floor", ["-0.1", "1.1", "nan"])
def test_a_floor_that_is_not_a_share(calibrate, images, tmp_path, capsys, floor):
    assert calibrate("--int8-floor", floor, graph=decoder(tmp_path / "graph.onnx"), images=images) == 2
    assert "--int8-floor" in capsys.readouterr().err


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_weights_on_the_left_and_of_rank_3_run_in_int8(calibrate, images, tmp_path, capsys, effort):
    nodes = [
        N("MatMul", ["w_mix", "tokens"], ["mixed"], name="mix"),
        N("Reshape", ["mixed", "to_heads"], ["split"]),
        N("Transpose", ["split"], ["heads"], perm=[0, 2, 1, 3]),
        N("MatMul", ["heads", "w_heads"], ["y"], name="per_head"),
    ]
    weights = {**STEM, "w_mix": (16, 16), "to_heads": np.array([0, 16, 2, 4]), "w_heads": (2, 4, 4)}
    graph = save(tmp_path / "graph.onnx", [*stem(), *nodes], ["y"], **weights)
    assert calibrate("--int8-floor", 1, graph=graph, images=images, effort=effort) == 0
    assert "INT8         100.0%" in capsys.readouterr().out
    judged = held_out(np.load(images))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    files = graph, tmp_path / "out/model.int8.onnx"
    before, after = (onnxruntime.InferenceSession(file, options).run(None, {"x": judged})[0] for file in files)
    assert sqnr_db(before, after) > 25


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_graph_of_ir_version_3_is_written_so_that_the_checker_takes_it(calibrate, images, tmp_path, effort):
    nodes = [*stem(), N("MatMul", ["tokens", "w_out"], ["y"], name="out")]
    graph = save(tmp_path / "graph.onnx", nodes, ["y"], opset=13, ir=3, **STEM, w_out=(8, 4))
    assert calibrate(graph=graph, images=images, effort=effort) == 0
    for name in ("int8", "refined"):
        onnx.checker.check_model(tmp_path / f"out/model.{name}.onnx", full_check=True)


def test_every_output_has_its_sqnr_and_the_budget_is_on_the_first(calibrate, images, tmp_path, capsys):
    nodes = [
        *stem(),
        N("ReduceMean", ["tokens", "over_tokens"], ["pooled"], keepdims=0),
        N("MatMul", ["pooled", "w_out"], ["logits"], name="head"),
        N("Conv", ["relu", "w_map"], ["map"], name="map"),
    ]
    weights = {**STEM, "over_tokens": np.array([1]), "w_out": (8, 5), "w_map": (2, 8, 1, 1)}
    graph = save(tmp_path / "graph.onnx", nodes, ["logits", "map"], **weights)
    assert calibrate("--max-drop", 100, graph=graph, images=images) == 0
    said = capsys.readouterr().out
    judged = held_out(np.load(images))
    files = graph, tmp_path / "out/model.int8.onnx"
    before, after = (onnxruntime.InferenceSession(file).run(None, {"x": judged}) for file in files)
    agreement = np.mean(before[0].argmax(1) == after[0].argmax(1))
    assert f"logits       SQNR {sqnr_db(before[0], after[0]):.1f} dB, agreement {agreement:.2%} on 32 held-out images" in said
    assert f"map          SQNR {sqnr_db(before[1], after[1]):.1f} dB on 32 held-out images" in said
    assert calibrate("--max-drop", 0, "--keep-float", "stem", graph=graph, images=images) in (
        0,
        1,
    )  # `map` cannot change logits
    assert "Traceback" not in capsys.readouterr().err


def test_a_constant_output_is_not_judged(calibrate, images, tmp_path, capsys):
    nodes = [*stem(), N("MatMul", ["tokens", "w_out"], ["y"], name="out")]
    graph = save(tmp_path / "graph.onnx", nodes, ["y"], **STEM, w_out=np.zeros((8, 4), np.float32))
    assert calibrate(graph=graph, images=images) == 3
    said = capsys.readouterr().out
    assert "not judged: the float graph's output is zero for every image" in said
    assert "inf" not in said.replace("information", "")
    assert (tmp_path / "out/model.int8.onnx").is_file()


def test_shapes_that_inference_does_not_follow_cost_nothing(calibrate, images, tmp_path, capsys):
    nodes = [
        *stem()[:2],
        N("NonZero", ["four"], ["places"]),
        N("ReduceSum", ["places"], ["six"], keepdims=0),
        N("Add", ["six", "two"], ["eight"]),
        N("Reshape", ["eight", "one"], ["eights"]),
        N("Concat", ["eights", "minus"], ["shape"], axis=0),
        N("Concat", ["zeros", "shape"], ["sizes"], axis=0),
        N("Reshape", ["relu", "sizes"], ["flat"]),
        N("MatMul", ["flat", "w_out"], ["y"], name="out"),
    ]
    weights = {"w_stem": (8, 3, 2, 2), "four": np.ones(4, np.float32), "two": np.array(2), "one": np.array([1])}
    weights |= {"minus": np.array([-1]), "zeros": np.array([0]), "w_out": (16, 4)}
    graph = save(tmp_path / "graph.onnx", nodes, ["y"], **weights)
    assert calibrate("--int8-floor", 1, graph=graph, images=images) == 0
    assert "INT8         100.0%" in capsys.readouterr().out
