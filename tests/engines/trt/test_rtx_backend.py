"""TensorRT-RTX builds of tiny graphs and their receipts. The oracle is the graph: the known conditions for INT8."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_graphs import ISLAND, Graph, attention, convolutions, softmax_attention

from calib.errors import BackendError, GraphError, MissingError, UsageError, VerdictError
from engines.build import build
from engines.build_spec import BatchRange, BuilderOptions, BuildSpec
from engines.layer_records import EngineEvidence
from engines.rtx_plan_text import read_plan
from engines.targets import TARGETS
from engines.trt import api
from engines.typed_graph import type_graph

try:
    api.load("rtx")
except MissingError as missing:
    pytest.skip(f"{missing}", allow_module_level=True)

RTX = TARGETS["rtx"]


def receipt(folder: Path, model: onnx.ModelProto, precision: str, floor: float = 0.0):
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return build(BuildSpec(path, RTX, precision, BatchRange(1, 2, 4), floor))


def fallbacks(built) -> dict[str, str]:
    return {f.layer: f.actual for f in built.receipt.fallbacks}


def test_fully_quantized_attention_is_all_int8(tmp_path):
    built = receipt(tmp_path, type_graph(attention(quantized=True), keep_fp32=ISLAND), "int8", 1.0)
    assert built.receipt.int8_mac_fraction == 1.0
    assert built.receipt.actual == built.receipt.requested == {"int8": 1.0}
    assert built.receipt.fallbacks == ()
    assert (built.input.shape, built.input.dtype, built.outputs[0].name) == ((-1, 8, 16), "float32", "residual_out")
    assert built.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")


def test_fully_quantized_convolutions_are_all_int8(tmp_path):
    built = receipt(tmp_path, type_graph(convolutions(quantized=True)), "int8", 1.0)
    assert built.receipt.int8_mac_fraction == 1.0


def test_fp16_graph_has_no_int8_and_its_island_is_fp32(tmp_path):
    built = receipt(tmp_path, type_graph(attention(), keep_fp32=ISLAND), "fp16")
    assert built.receipt.int8_mac_fraction == 0.0
    assert built.receipt.actual == {"fp16": 0.8, "fp32": 0.2}
    assert fallbacks(built) == {"attn.kv/MatMul": "fp32"}
    assert "the graph requests fp32" in built.receipt.fallbacks[0].reason


def test_fp32_graph_is_fp32(tmp_path):
    built = receipt(tmp_path, convolutions(), "fp32")
    assert built.receipt.actual == {"fp32": 1.0}


def test_weight_scale_along_k_shows_in_the_engine(tmp_path):
    built = receipt(tmp_path, type_graph(attention(quantized=True, weight_axis=0)), "int8")
    (fallback,) = built.receipt.fallbacks
    assert (fallback.layer, fallback.requested, fallback.actual) == ("attn.v/MatMul", "int8", "fp16")
    assert "axis 0, which is summed over" in fallback.reason
    assert built.receipt.int8_mac_fraction == pytest.approx(0.8)


def test_a_node_named_like_its_output_is_found_in_the_engine(tmp_path):
    model = attention(quantized=True)
    for node in model.graph.node:
        node.name = node.output[0]
    typed = type_graph(model)
    built = receipt(tmp_path, typed, "int8", 1.0)
    label = rb'="attn\.out/MatMul_out_U\d+"'
    assert len(re.findall(label, built.data)) >= 1, "TensorRT-RTX numbers it"
    other = re.sub(rb"(" + label + rb"[^\n]*)\[ONNX Layer: attn\.out/MatMul_out\]", rb"\1[ONNX Layer: another]", built.data)
    evidence = read_plan(other, frozenset({"attn.out/MatMul_out"})).layers
    assert evidence.get("attn.out/MatMul_out") is None or evidence["attn.out/MatMul_out"].actual == "unknown"


PRODUCTS = ("attn.scores/MatMul", "attn.mix/MatMul")
FUSED = rb"_gemm_mha_v2 fqn="


@pytest.fixture(scope="module")
def fused_plan(tmp_path_factory):
    """A plan whose fused attention computes two INT8 products."""
    built = receipt(tmp_path_factory.mktemp("fused"), type_graph(softmax_attention()), "int8")
    assert FUSED in built.data
    assert built.receipt.actual == {"int8": 1.0}
    return built.data


def types_of_products(plan: bytes) -> set[str]:
    evidence = read_plan(plan, frozenset(PRODUCTS)).layers
    return {evidence[name].actual for name in PRODUCTS}


def test_fused_attention_is_int8_by_the_instructions_of_both_products(fused_plan):
    evidence = read_plan(fused_plan, frozenset(PRODUCTS)).layers
    assert {evidence[name].source for name in PRODUCTS} == {"fused attention on int8 x int8 x int8, instructions int8 and int8"}


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (rb"(Kernel_traits_v2\w*<\s*fmha::\w+?_)imma_int8_int32(_traits,)", rb"\1hmma_fp32\2"),  # of the first product
        (rb"(Kernel_traits_v2\w*<\s*fmha::\w+,\s*fmha::\w+?_)imma_int8_int32(_traits,)", rb"\1hmma_fp32\2"),  # of the second
        (rb"imma_int8_int32_traits", rb"imma_other_traits"),
        (rb"__global__ void _gemm_mha_v2_0x", rb"__global__ void _gemm_mha_v2_1x"),  # source of another kernel
        (rb"using Kernel_traits =", rb"using Other_traits ="),
        (rb"type=int8 ", rb"type=half "),
    ],
)
def test_fused_attention_without_evidence_for_both_products_is_unknown(fused_plan, pattern, replacement):
    changed, count = re.subn(pattern, replacement, fused_plan)
    assert count
    assert types_of_products(changed) == {"unknown"}


def test_a_third_node_without_a_step_in_fused_attention_makes_all_three_unknown(fused_plan):
    changed = fused_plan.replace(b"[ONNX Layer: attn.softmax]", b"[ONNX Layer: attn.third]")
    evidence = read_plan(changed, frozenset({*PRODUCTS, "attn.third"})).layers
    assert {evidence[name].actual for name in (*PRODUCTS, "attn.third")} == {"unknown"}


@pytest.mark.parametrize(
    ("products", "actual"),
    [("", ("fp16", "fp16")), ("qk", ("int8", "fp16")), ("pv", ("fp16", "int8")), ("qpv", ("fp16", "int8"))],
)
def test_products_of_attention_are_what_both_their_sides_are(tmp_path, products, actual):
    built = receipt(tmp_path, type_graph(softmax_attention(products=products)), "int8")
    evidence = read_plan(built.data, frozenset(PRODUCTS)).layers
    assert tuple(evidence[name].actual for name in PRODUCTS) == actual


def weights_anywhere(right_axis, left_axis, heads_axis):
    """Per image (8, 16): x W, then W' x, then x W'' with a matrix per head, then a ConvTranspose with Q/DQ; 2048 MACs each."""
    g = Graph(8, 16)
    g.weight("w_right", 16, 16)
    x = g.node("MatMul", [g.pair("image"), g.int8_weight("w_right", right_axis)], "right")
    g.weight("w_left", 16, 8)
    x = g.node("MatMul", [g.int8_weight("w_left", left_axis), g.pair(x)], "left")  # (16, 16)
    g.store("heads_shape", np.array([0, 2, 8, 16]))
    x = g.node("Reshape", [x, "heads_shape"], "split")
    g.weight("w_heads", 2, 16, 8)
    x = g.node("MatMul", [g.pair(x), g.int8_weight("w_heads", heads_axis)], "heads")  # (2, 8, 8)
    g.weight("w_up", 2, 4, 2, 2)
    x = g.node("ConvTranspose", [g.pair(x), g.int8_weight("w_up", 1)], "up", strides=[2, 2])
    return g.model(x, 4, 16, 16)


def test_weights_on_the_left_and_of_rank_3_run_in_int8_and_a_transposed_convolution_does_not(tmp_path):
    built = receipt(tmp_path, type_graph(weights_anywhere(1, 0, 2)), "int8")
    assert fallbacks(built) == {"up": "fp16"}
    assert built.receipt.fallbacks[0].reason == "TensorRT runs ConvTranspose in float; transposed convolution on fp16 x fp16"
    assert built.receipt.actual == {"fp16": 0.25, "int8": 0.75}


def test_scales_along_other_axes_of_such_weights_show_in_the_engine(tmp_path):
    built = receipt(tmp_path, type_graph(weights_anywhere(0, 1, 0)), "int8")
    assert fallbacks(built) == dict.fromkeys(("right", "left", "heads", "up"), "fp16")
    assert "axis 0, which is not that of the output channels" in next(
        f.reason for f in built.receipt.fallbacks if f.layer == "heads"
    )


def test_one_side_of_a_batched_product_shows_in_the_engine(tmp_path):
    built = receipt(tmp_path, type_graph(attention(quantized=True, both_sides=False)), "int8")
    (fallback,) = built.receipt.fallbacks
    assert (fallback.layer, fallback.requested, fallback.actual) == ("attn.kv/MatMul", "fp16", "fp16")
    assert "no Q/DQ on operand B" in fallback.reason


def test_floor_fails_the_build_and_names_the_layer(tmp_path):
    with pytest.raises(VerdictError, match=r"0\.8000 of the MACs\n.*attn\.v/MatMul: int8 -> fp16, 20\.0% of MACs"):
        receipt(tmp_path, type_graph(attention(quantized=True, weight_axis=0)), "int8", 0.95)


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (attention(), "int8"),
        (attention(), "fp16"),
        (attention(quantized=True), "fp32"),
        (type_graph(attention(), keep_fp32=ISLAND), "fp32"),
    ],
)
def test_graph_of_another_precision_is_refused(tmp_path, model, precision):
    with pytest.raises(GraphError, match=f"the graph does not request {precision}"):
        receipt(tmp_path, model, precision)


def test_ambiguous_nodes_are_not_evidence(tmp_path):
    model = type_graph(attention(quantized=True))
    for node in model.graph.node:
        if node.name in ("attn.q/MatMul", "attn.k/MatMul"):
            node.name = "twin"
    built = receipt(tmp_path, model, "int8")
    assert built.receipt.int8_mac_fraction == pytest.approx(0.6)
    assert set(fallbacks(built).values()) == {"unknown"}


def test_rejected_node_is_named(tmp_path):
    g = Graph(4, 4)
    zero = 3  # TensorRT supports symmetric quantization only
    out = g.node("MatMul", [g.pair("image", 0.1, zero), g.int8_weight(g.weight("w", 4, 4), 1)], "fc/MatMul")
    with pytest.raises(BackendError, match=r"image/(Q|DQ)") as caught:
        receipt(tmp_path, g.model(out, 4, 4), "int8")
    assert caught.value.log
    assert caught.value.exit_code == 2


def test_two_builds_have_the_same_receipt(tmp_path):
    model = type_graph(convolutions(quantized=True))
    assert receipt(tmp_path, model, "int8").receipt == receipt(tmp_path, model, "int8").receipt


def test_unknown_compute_capability():
    builder = api.Builder("rtx")
    with pytest.raises(UsageError, match="SM80") as caught:
        builder.set_compute_capabilities(builder.make_config(BuilderOptions()), ("8.0", "3.5"))
    assert "found: 3.5" in str(caught.value)


COLLECTED = """
import gc
from engines.trt import api as trt_api

make_logger, called = trt_api._make_logger, []

def make_busy_logger(module, lines):
    class Busy(type(make_logger(module, lines))):
        def log(self, severity, message):
            called.append([[] for _ in range(200_000)])  # the collector would run here
    return Busy()

trt_api._make_logger = make_busy_logger
gc.disable()
gc.set_threshold(100_000)
first = trt_api.Builder("rtx")  # the library keeps calling the logger of the first
old = trt_api.Builder("rtx")
old.itself = old
del old, called[:]
gc.enable()
trt_api.Builder("rtx")
assert called
"""


def test_collecting_a_builder_while_another_is_created_does_not_deadlock():
    """The collector runs inside TensorRT's call, which holds a lock that the old builder's destructor needs."""
    subprocess.run([sys.executable, "-c", COLLECTED], check=True, timeout=120, cwd=Path(api.__file__).parents[1])


def test_failed_build_is_an_error():
    builder = api.Builder("rtx")
    network = builder.parse(type_graph(attention()).SerializeToString())
    with pytest.raises(BackendError, match="built no engine") as caught:  # no optimization profile for a dynamic input
        builder.build(network, builder.make_config(BuilderOptions()), lambda _share: None)
    assert "profile" in str(caught.value)


def test_progress_ends_at_one():
    shares: list[float] = []
    builder = api.Builder("rtx")
    network = builder.parse(type_graph(attention()).SerializeToString())
    config = builder.make_config(BuilderOptions())
    builder.add_profile(config, {"image": ((1, 8, 16), (2, 8, 16), (4, 8, 16))})
    builder.set_compute_capabilities(config, RTX.compute_capabilities)
    assert builder.build(network, config, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_interrupt_ends_the_build_and_leaves_no_file(tmp_path):
    g = Graph(64, 64)
    x = "image"
    for i in range(60):
        x = g.node("Gelu", [g.node("MatMul", [x, g.weight(f"w{i}", 64, 64)], f"m{i}")], f"g{i}")
    onnx.save(g.model(x, 64, 64), tmp_path / "graph.onnx")
    program = textwrap.dedent("""
        import sys, threading, signal, os
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
        from pathlib import Path
        from engines.build import build
        from engines.build_spec import BuildSpec
        from engines.targets import TARGETS
        spec = BuildSpec(Path(sys.argv[1]), TARGETS["rtx"], "fp32")
        interrupted = []
        def once(share):
            if not interrupted:
                interrupted.append(share)
                os.kill(os.getpid(), signal.SIGINT)
        try:
            build(spec, once)
        except KeyboardInterrupt:
            sys.exit(42)
    """)
    root = Path(__file__).parents[3]
    code = subprocess.run(
        [sys.executable, "-c", program, "graph.onnx"], cwd=tmp_path, env={"PYTHONPATH": str(root)}, timeout=60, check=False
    )
    assert code.returncode == 42
    assert [p.name for p in tmp_path.iterdir()] == ["graph.onnx"]


PLAN = b"""
  tensor={ alignment=128 dims={ 8 } name="a" offset=0 type=int8 }
  sub_tensor={ base="a" dims={ 8 } name="b" type=int8 }
  tensor={ dims={ 8 } name="f" type=half }
  tensor={ dims={ 8 } name="two" type=int8 }
  tensor={ dims={ 8 } name="two" type=half }
main {
 label bb1:
  fully_connected={ name="x+y" output={"f" } input={"a" "b" "f" } trA=false layers="[ONNX Layer: x]
[ONNX Layer: y]" }
  corrltn={ name="c" output={"f" } input={"a" "f" } }
  corrltn={ name="d" output={"f" } input={"a" "undeclared" } }
  corrltn={ name="e" output={"f" } input={"a" "two" } }
  fully_connected={ name="again" output={"f" } input={"a" "a" } }
  fully_connected={ name="again" output={"f" } input={"f" "f" } }
  function={ name=__myl_Mul args={ "a" "b" } layers="[ONNX Layer: hidden]" }
}
"""


def test_plan_reader_on_a_handwritten_plan():
    nodes = frozenset(("x", "y", "c", "d", "e", "again", "hidden", "absent"))
    precisions = {name: e.actual for name, e in read_plan(PLAN, nodes).layers.items()}
    assert precisions == {
        "x": "int8",
        "y": "int8",
        "c": "fp16",
        "d": "unknown",
        "e": "unknown",
        "again": "fp16",
        "hidden": "unknown",
    }


def test_plan_reader_needs_proof_of_int8():
    assert read_plan(b"", frozenset("x")) == EngineEvidence()
    unreadable = read_plan(PLAN.replace(b"fully_connected", b"something_new"), frozenset("x")).layers
    assert unreadable == {"x": read_plan(PLAN, frozenset(("hidden",))).layers["hidden"]}


def test_plan_reader_counts_kernels():
    assert read_plan(PLAN, frozenset()).kernels == PLAN.count(b"={ name=")
