"""An ONNX graph as a torch program computes what ONNX Runtime computes; what cannot be told to torch is refused."""

import io
import re

import numpy as np
import onnx
import pytest
from engine_graphs import ISLAND, OPSET, Graph, attention, convolutions, images, run
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch_trt_programs import changed

from calib.errors import GraphError
from calib.metrics import sqnr_db
from engines.build_spec import BatchRange
from engines.typed_graph import type_graph

torch = pytest.importorskip("torch")

SQNR_DB = {
    "fp32": 110.0,  # the same operations in another order
    "int8": 45.0,  # as fp32, but a value near a rounding boundary may get either code: a step of 1/127
    "fp16": 55.0,  # ONNX Runtime computes FP16 graphs mostly in FP32, torch rounds every result
    "int8 fp16": 34.0,  # both: values differ by FP16 rounding, so that far more of them get the other code
}


def program_module(model):
    from engines.torch_tensorrt.onnx_program import OnnxModule

    return OnnxModule(model).eval()


def torch_outputs(model, x):
    with torch.no_grad():
        return program_module(model)(torch.from_numpy(x)).numpy()


GRAPHS = {
    "attention, fp32": (attention(), "fp32", (8, 16)),
    "convolutions, fp32": (convolutions(), "fp32", (8, 12, 12)),
    "attention, int8": (attention(quantized=True), "int8", (8, 16)),
    "convolutions, int8": (convolutions(quantized=True), "int8", (8, 12, 12)),
    "attention, scales along K": (attention(quantized=True, weight_axis=0), "int8", (8, 16)),
    "attention, fp16 with an island": (type_graph(attention(), keep_fp32=ISLAND), "fp16", (8, 16)),
    "attention, typed int8": (type_graph(attention(quantized=True), keep_fp32=ISLAND), "int8 fp16", (8, 16)),
    "convolutions, typed int8": (type_graph(convolutions(quantized=True)), "int8 fp16", (8, 12, 12)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_program_computes_what_onnx_runtime_computes(name):
    model, kind, shape = GRAPHS[name]
    if kind == "int8 fp16":
        require_fp16_rounding()
    x = images(*shape, batch=8)
    assert sqnr_db(run(model, x), torch_outputs(model, x)) >= SQNR_DB[kind]


@pytest.mark.parametrize(
    ("graph", "tensor", "change"),
    [
        ("attention, fp32", "w_q", lambda w: w * 2),
        ("attention, fp32", "w_q", np.negative),
        ("attention, fp32", "eps", lambda e: e * 1e5),
        ("attention, int8", "w_v_s", lambda s: s / 2),
        ("attention, int8", "w_v_s", lambda s: s[::-1]),
        ("attention, int8", "w_v_q", np.zeros_like),
        ("attention, int8", "ln_out_scale", lambda s: s / 8),
        ("attention, typed int8", "w_v_s/fp16", lambda s: s[::-1]),
        ("convolutions, int8", "w2_s", lambda s: np.where(np.arange(len(s)) == 3, s * 4, s)),
    ],
)
def test_a_changed_graph_is_detected(graph, tensor, change):
    model, kind, shape = GRAPHS[graph]
    x = images(*shape, batch=8)
    assert sqnr_db(run(changed(model, tensor, change), x), torch_outputs(model, x)) < SQNR_DB[kind]


TIES = np.array([0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, -128.5, 300, -300, 1 / 3, 2 / 3, 41.5, -41.5, 1e-6])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_codes_are_those_of_onnx_runtime(axis, dtype):
    """Ties, saturation and every axis, to the last code."""
    if dtype == np.float16:
        require_fp16_rounding()
    scale = np.asarray(0.75 if axis is None else np.linspace(0.25, 1.5, 16), dtype)
    along = scale if axis is None else scale.reshape((-1, 1) if axis == 0 else (1, -1))
    x = (np.stack([np.roll(TIES, i) for i in range(16)]) * along).astype(dtype)
    import engines.torch_tensorrt.onnx_operators  # noqa: F401  # registers the two operators

    q = torch.ops.ufovit.quantize(torch.from_numpy(x), torch.from_numpy(scale), axis or 0)
    back = torch.ops.ufovit.dequantize(q, torch.from_numpy(scale), axis or 0)
    codes, numbers = quantize_with_onnx_runtime(x, scale, {} if axis is None else {"axis": axis})
    assert (q.numpy() == codes).all()
    assert {-128, 127, 0, 2} <= set(codes.flatten().tolist())
    assert back.numpy().dtype == dtype
    assert (back.numpy() == numbers).all()


def require_fp16_rounding():
    """Skip where ONNX Runtime (1.23, the last for Python 3.10) rounds 1.75 to 1 in QuantizeLinear of FP16."""
    codes, _ = quantize_with_onnx_runtime(np.full((1, 1), 1.75, np.float16), np.asarray(1.0, np.float16), {})
    if codes.item() != 2:
        pytest.skip("this ONNX Runtime quantizes FP16 by truncation")


def quantize_with_onnx_runtime(x, scale, axis):
    import onnxruntime as ort

    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **axis),
        ],
        "pair",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("q", TensorProto.INT8, x.shape), helper.make_tensor_value_info("y", kind, x.shape)],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(np.zeros(scale.shape, np.int8), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.fixture(scope="module")
def tiny_graphs(tmp_path_factory):
    """A tiny UFO-ViT, exported, quantized and typed by the toolkit: name -> graph; and images (8, 3, 32, 32)."""
    from calib.collect import CollectConfig, collect_table
    from calib.qdq_placement import plan_quantization
    from calib.qdq_writer import insert_qdq
    from edge.model.checkpoint import random_network
    from edge.model.export import export_onnx
    from edge.model.sizes import UfoVitConfig

    network = random_network(UfoVitConfig("ufovit_tiny", depth=1, dim=32, heads=2, image_size=32, classes=5), 0)
    x = images(3, 32, 32, batch=16)
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    export_onnx(network, path, x[:4])
    model = onnx.load(path)
    plan = plan_quantization(model)
    table = collect_table(path, [x], plan, data_sha256="0" * 64, config=CollectConfig(min_images=16, synthetic=True))
    quantized = insert_qdq(model, table, plan)
    island = frozenset(n.name for n in model.graph.node if "xnorm" in n.name)
    return {
        "fp32": model,
        "int8": quantized,
        "fp16": type_graph(model, keep_fp32=island),
        "int8 fp16": type_graph(quantized, keep_fp32=island),
    }, x[:8]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SQNR_DB)
def test_the_program_of_a_network_computes_what_onnx_runtime_computes(tiny_graphs, kind):
    graphs, x = tiny_graphs
    assert any(n.op_type == "QuantizeLinear" for n in graphs[kind].graph.node) == ("int8" in kind)
    assert sqnr_db(run(graphs[kind], x), torch_outputs(graphs[kind], x)) >= SQNR_DB[kind]


@pytest.mark.slow
def test_a_float_network_differs_from_its_int8_form(tiny_graphs):
    graphs, x = tiny_graphs
    assert sqnr_db(run(graphs["fp32"], x), torch_outputs(graphs["int8"], x)) < SQNR_DB["int8"]


@pytest.mark.slow
def test_every_layer_is_traceable_in_the_exported_program(tiny_graphs):
    """After torch.export, saving and loading: batch sizes, numbers, and which node an operation came from."""
    from engines.torch_tensorrt.onnx_program import export_program

    graphs, x = tiny_graphs
    model = graphs["int8 fp16"]
    program = export_program(model, BatchRange(1, 2, 4))
    assert program.shapes == ((1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))
    assert (program.input, program.dtype, program.outputs) == ("image", "float32", ("logits",))
    loaded = torch.export.load(io.BytesIO(program.data))
    for size in (1, 2, 4):
        with torch.no_grad():
            assert (loaded.module()(torch.from_numpy(x[:size])).numpy() == torch_outputs(model, x[:size])).all()
    operations = {}
    for node in loaded.graph.nodes:
        name = str(node.target)
        if re.match(r"aten\.(conv2d|linear|matmul)\.", name):
            (path, _module) = list(node.meta["nn_module_stack"].values())[-1]
            operations.setdefault(program.steps[path.removeprefix("steps.")], []).append(name)
    layers = [n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    assert sorted(operations) == sorted(layers)
    assert all(len(names) == 1 for names in operations.values())


def test_one_batch_size_gives_a_program_of_that_size():
    from engines.torch_tensorrt.onnx_program import export_program

    program = export_program(attention(), BatchRange(3, 3, 3))
    assert program.shapes == ((3, 8, 16),)
    loaded = torch.export.load(io.BytesIO(program.data)).module()
    assert loaded(torch.zeros(3, 8, 16)).shape == (3, 8, 16)


def one_node(op, inputs=("image",), weights=(), **attributes):
    g = Graph(4, 6, 6)
    for name, value in weights:
        g.store(name, np.asarray(value))
    out = g.node(op, list(inputs), "it", **attributes)
    graph = helper.make_graph(
        g.nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in g.weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


F32, KERNEL = np.float32, np.ones((2, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (one_node("Softmax"), "this operator"),
        (one_node("Conv", ("image", "w"), [("w", KERNEL)], pads=[0, 0, 1, 1]), r"pads \[0, 0, 1, 1\]"),
        (one_node("Conv", ("image", "w"), [("w", KERNEL)], auto_pad="SAME_UPPER"), "auto_pad=b'SAME_UPPER'"),
        (one_node("LayerNormalization", ("image", "w"), [("w", np.ones(6, F32))], axis=-2), "axis -2"),
        (one_node("ReduceL2", ("image", "a"), [("a", [1])], noop_with_empty_axes=1), "noop_with_empty_axes=1"),
        (one_node("ReduceL2"), "missing or computed axes"),
        (one_node("Gather", ("image", "i"), [("i", [0, 1])]), "indices other than one constant"),
        (
            one_node("Slice", ("image", "s", "e", "a", "t"), [(k, [v]) for k, v in zip("seat", (5, 0, 2, -1), strict=True)]),
            "steps",
        ),
        (one_node("Cast", to=TensorProto.INT32), "to 6"),
        (one_node("Add", ("image", "image"), made_up=1), "attribute made_up"),
        (one_node("QuantizeLinear", ("image", "s", "z"), [("s", F32(1)), ("z", np.int8(1))]), "scale or zero-point"),
        (one_node("QuantizeLinear", ("image", "s", "z"), [("s", F32(1)), ("z", np.uint8(0))]), "scale or zero-point"),
        (one_node("QuantizeLinear", ("image", "s"), [("s", F32(1))]), "scale or zero-point"),
    ],
)
def test_unsupported_nodes_are_refused(model, words):
    with pytest.raises(GraphError, match=rf"cannot be converted to a torch program\n  where: \w+ it\n  found: .*{words}"):
        program_module(model)


@pytest.mark.parametrize(
    "model",
    [
        one_node("Slice", ("image", "s", "e", "a", "t"), [(k, [v]) for k, v in zip("seat", (1, 99, -1, 2), strict=True)]),
        one_node("Slice", ("image", "s", "e"), [("s", [0, 1]), ("e", [2, 3])]),
        one_node("Gather", ("image", "i"), [("i", 2)], axis=2),
        one_node("Reshape", ("image", "s"), [("s", [0, -1, 9])]),
        one_node("Transpose"),
        one_node("Clip", ("image", "lo", "hi"), [("lo", F32(-0.5)), ("hi", F32(0.25))]),
        one_node("Clip", ("image", "", "hi"), [("hi", F32(0.25))]),
        one_node("Gelu", approximate="tanh"),
        one_node("ReduceMean", ("image", "a"), [("a", [1, -1])], keepdims=0),
        one_node("Conv", ("image", "w"), [("w", KERNEL)], strides=[2, 1], pads=[1, 0, 1, 0], dilations=[1, 2]),
        one_node("Max", ("image", "a", "b"), [("a", F32(0)), ("b", np.linspace(-1, 1, 6).astype(F32))]),
    ],
    ids=lambda m: m.graph.node[0].op_type,
)
def test_single_operators_agree_with_the_reference(model):
    x = images(4, 6, 6, batch=2)
    (expected,) = ReferenceEvaluator(model).run(None, {"image": x})
    assert expected.size
    np.testing.assert_allclose(torch_outputs(model, x), expected, rtol=1e-5, atol=1e-6)
