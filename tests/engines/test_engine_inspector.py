"""Read engine inspector output with the keys of 8.6 to 10.x and of 11.x; a layer is never INT8 without proof.

The layers below are written by hand in TensorRT's format, with the names of this project's graphs. Sources:

    10.x, convolutions     NVIDIA, developer guide, "Engine Inspector": "Format/Datatype", "Weights": {"Type": ...}
    10.x, Myelin           NVIDIA/TensorRT#4397 (10.10): "gemm" and "fusion" that list their activation and no constant; one
                           "[ONNX Layer: ...]" per node in the metadata, control characters between them
    10.x, all operands     the same of a Gemm: activation, weights, alpha, beta, bias
    dynamic shapes         "N/A due to dynamic shapes" for every tensor that depends on the batch, without a context
    11.x                   NVIDIA, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x": "Format/Datatype" is split
    names of tactics       xmma: A and C, products and sums, scale: i8f32_i8i32_f32; cuBLAS: ampere_int8_i16832gemm_int8
"""

import json

import numpy as np
import onnx
import pytest
from engine_graphs import Graph

from calib.errors import ArtifactError, GraphError, VerdictError
from calib.lint import lint_graph
from engines.engine_inspector import read_inspector
from engines.layer_records import EngineEvidence, Layer
from engines.layer_requests import graph_facts
from engines.plan_kernels import PlanStep
from engines.precision_receipt import check_receipt, make_receipt

INT8_XMMA = "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize32x64x64_stage6_warpsize2x2x1_tensor16x8x32"
FP16_XMMA = "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16"
INT8_CONV = "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_tilesize64x64x64"
DYNAMIC = "N/A due to dynamic shapes"
NODE = "blocks.0.attn.q/MatMul"
INT8, HALF, FLOAT = "Int8", "Half", "Float"


def tensors(*types, key="Format/Datatype"):
    return [{"Name": f"t{i}", "Location": "Device", "Dimensions": [8, 64, 192], key: t} for i, t in enumerate(types)]


def split_tensors(*types):
    """In the format of 11.x."""
    return [
        {"Name": f"t{i}", "Location": "Device", "Dimensions": [8, 64, 192], "DataType": t, "Format": "Row major (kLINEAR)"}
        for i, t in enumerate(types)
    ]


def mentions(*nodes, between=""):
    return between.join(f"[ONNX Layer: {node}]" for node in nodes)


def layer(kind, inputs, tactic="", *, name="a_myl0_1", metadata=None, **more):
    base = {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": tensors(HALF), "TacticName": tactic, "StreamId": 0}
    return {**base, "Metadata": mentions(NODE) if metadata is None else metadata, **more}


def read(*layers, nodes=(NODE,)):
    text = json.dumps({"Layers": list(layers), "Bindings": ["image", "logits"]})
    return read_inspector(text, frozenset(nodes))


def actual(*layers, node=NODE, nodes=(NODE,)):
    evidence = read(*layers, nodes=nodes).layers
    return evidence[node].actual if node in evidence else "not named"


@pytest.mark.parametrize("make", [tensors, split_tensors], ids=["10.x", "11.x"])
@pytest.mark.parametrize(
    ("types", "tactic", "expected"),
    [
        ((INT8, INT8), INT8_XMMA, "int8"),
        ((INT8, INT8), "", "int8"),
        ((INT8, INT8), "__myl_Fc_0xf2543c36ff9f104bbb1655b0183afb47", "int8"),
        ((INT8, INT8, FLOAT, FLOAT, HALF), INT8_XMMA, "int8"),
        ((INT8,), INT8_XMMA, "int8"),
        ((INT8,), "ampere_int8_i16832gemm_int8_128x128_ldg16_relu_stages_64x3_nt_v1", "int8"),
        ((INT8,), "turing_int32_i8816gemm_int8_128x128_ldg16_nt_v1", "int8"),
        ((DYNAMIC, INT8), INT8_XMMA, "int8"),
        ((HALF, HALF), FP16_XMMA, "fp16"),
        ((HALF,), FP16_XMMA, "fp16"),
        ((FLOAT, FLOAT), "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64", "fp32"),
        (("BFloat16", "BFloat16"), "", "bf16"),
        (("FP8", "FP8"), "", "fp8"),
    ],
)
def test_matrix_products(make, types, tactic, expected):
    assert actual(layer("gemm", make(*types), tactic)) == expected


@pytest.mark.parametrize("make", [tensors, split_tensors], ids=["10.x", "11.x"])
@pytest.mark.parametrize(
    ("types", "tactic"),
    [
        ((INT8,), ""),
        ((INT8,), FP16_XMMA),
        ((INT8,), f"{FP16_XMMA}_int8"),
        ((INT8,), "__myl_Fc_0xf2543c36ff9f104bbb1655b0183afb47"),
        ((INT8, INT8), FP16_XMMA),  # stored in 8 bits, multiplied in 16
        ((INT8, INT8), "ampere_h16816gemm_256x128_ldg8_nn_v1"),
        ((INT8, INT8), "ampere_fp16_s16816gemm_fp16_256x128_ldg8_f2f_gelu_nn_v1"),
        ((INT8, INT8), "sm50_xmma_cublas_gemvx_f16f16_f32_f32_tn_n_int32_unit_n_launch_param4x32x32"),
        ((INT8, INT8), "sm89_xmma_gemm_e4m3f16_e4m3f32_f32_tn"),
        ((HALF, INT8), INT8_XMMA),
        ((HALF, INT8), FP16_XMMA),  # weights alone in 8 bits
        ((INT8, HALF), ""),
        ((INT8, FLOAT), ""),
        ((HALF,), INT8_XMMA),
        ((), INT8_XMMA),
        ((DYNAMIC,), INT8_XMMA),
        ((DYNAMIC, DYNAMIC), INT8_XMMA),
        ((DYNAMIC, INT8), ""),
        ((DYNAMIC, INT8), FP16_XMMA),
        (("Int4", "Int4"), ""),
        (("Int32", "Int32"), ""),
        (("Int64", "Int8"), ""),
        (("Bool", "Int8"), ""),
        (("", ""), ""),
        (("something new", "something new"), ""),
    ],
)
def test_no_matrix_product_is_int8_without_proof(make, types, tactic):
    assert actual(layer("gemm", make(*types), tactic)) != "int8"


@pytest.mark.parametrize(
    ("inputs", "weights", "tactic", "expected"),
    [
        (["Thirty-two wide channel vectorized row major Int8 format."], "Int8", INT8_CONV, "int8"),
        (["Int8(1024,1:32,...)"], "Int8", INT8_CONV, "int8"),
        (["Int8", "Half"], "Int8", INT8_CONV, "int8"),  # the second is a residual that is added
        (["Int8"], "Int8", "", "int8"),
        ([DYNAMIC], "Int8", INT8_CONV, "int8"),
        ([DYNAMIC, DYNAMIC], "Int8", INT8_CONV, "int8"),
        ([DYNAMIC], "Int8", "", "unknown"),
        ([DYNAMIC], "Int8", "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", "unknown"),
        ([DYNAMIC], "Half", "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", "unknown"),
        (["Channel major FP16 format where channel % 4 == 0"], "Half", "", "fp16"),
        (["Row major linear FP16 format"], "Int8", "", "fp16"),
        (["Row major linear FP32"], "Float", "", "fp32"),
        (["Int8"], "Half", "", "fp16"),
    ],
)
@pytest.mark.parametrize("kind", ["CaskConvolution", "CaskConvActPool", "CaskGemmConvolution", "FusedConvActDirect"])
def test_convolutions_take_one_input_and_their_weights(kind, inputs, weights, tactic, expected):
    conv = layer(kind, tensors(*inputs), tactic, name=NODE, Weights={"Type": weights, "Count": 131072}, Bias={"Type": FLOAT})
    assert actual(conv) == expected


@pytest.mark.parametrize(
    ("inputs", "tactic", "expected"),
    [
        ((INT8,), f"{INT8_XMMA}_by_fusion_tactic", "int8"),
        ((HALF, INT8, INT8), f"{INT8_XMMA}_by_fusion_tactic", "int8"),  # the bias may come first
        ((INT8, INT8), "__myl_FcMul_0xf2543c36ff9f104bbb1655b0183afb47", "unknown"),
        ((INT8, INT8), "pointwise_vectorized", "unknown"),
        ((INT8, INT8), f"{FP16_XMMA}_by_fusion_tactic", "unknown"),
        ((HALF,), f"{FP16_XMMA}_by_fusion_tactic", "fp16"),
        ((HALF,), f"{INT8_XMMA}_by_fusion_tactic", "fp16"),
        ((), f"{INT8_XMMA}_by_fusion_tactic", "unknown"),
    ],
)
def test_a_fusion_is_int8_only_if_its_tactic_is(inputs, tactic, expected):
    assert actual(layer("fusion", tensors(*inputs), tactic, name="__myl_FcMulAdd_myl0_25")) == expected


def test_generated_kernels_are_unknown():
    attention = layer(
        "kgen", tensors(INT8, INT8), "_gemm_mha_v2_0x7daddb359f728ff2e600188f192f4549", name="_gemm_mha_v2_myl0_4"
    )
    assert actual(attention) == "unknown"
    for kind in ("kgen", "Reformat", "NoOp", "Constant", "PointWiseV2", "Shuffle", "shape_call", "Myelin", "?"):
        assert actual(layer(kind, tensors(INT8, INT8), INT8_XMMA)) == "unknown"
    assert "kgen, whose precision is not reported" in read(attention).layers[NODE].source


def test_an_epilogue_in_a_generated_kernel_does_not_hide_the_product():
    product = layer("gemm", tensors(INT8, INT8), INT8_XMMA)
    epilogue = layer("kgen", tensors(HALF, HALF), "__myl_AddCast_0x1", metadata=mentions(NODE, "blocks.0/Add"))
    assert actual(epilogue, product) == actual(product, epilogue) == "int8"


def test_a_product_in_several_layers_is_int8_only_if_it_is_in_all_of_them():
    whole = layer("gemm", tensors(INT8, INT8), INT8_XMMA)
    assert actual(whole, whole) == "int8"
    for other, expected in ((HALF, "fp16"), (FLOAT, "fp32"), (DYNAMIC, "unknown")):
        assert actual(whole, layer("gemm", tensors(other, other))) == expected
        assert actual(layer("gemm", tensors(other, other)), whole) == expected


@pytest.mark.parametrize("between", ["", "\x1e", "\x1f", " ", ", "])
def test_fused_products_are_found_in_the_metadata(between):
    nodes = [f"blocks.0.attn.{part}/MatMul" for part in "kqv"]
    name = "blocks_0_attn_k/MatMul+blocks_0_attn_q/MatMul+blocks_0_attn_v/MatMul_myl0_44"
    fused = layer("gemm", tensors(INT8), INT8_XMMA, name=name, metadata=mentions(*nodes, "blocks.0/Add", between=between))
    layers = read(fused, nodes=[*nodes, "another/MatMul"]).layers
    assert {node: evidence.actual for node, evidence in layers.items()} == dict.fromkeys(nodes, "int8")


def test_without_metadata_the_name_identifies_the_node():
    name = f"stem.0.weight + stem.0/weight/Q + {NODE} + PWN(stem.1/Gelu)"
    for metadata in ("", None):
        convolution = layer("CaskConvolution", tensors(INT8), INT8_CONV, name=name, Weights={"Type": INT8}, metadata="")
        if metadata is None:
            del convolution["Metadata"]
        assert actual(convolution) == "int8"


def test_names_match_exactly():
    """The Q/DQ pairs of a node and nodes with similar names are other nodes."""
    for other in (f"{NODE}/Q", f"x{NODE}", NODE[:-1], f"{NODE}_1", NODE.upper()):
        assert actual(layer("gemm", tensors(INT8, INT8), INT8_XMMA, name=other, metadata=mentions(other))) == "not named"
        assert actual(layer("gemm", tensors(INT8, INT8), INT8_XMMA, name=other, metadata="")) == "not named"


def test_the_metadata_overrides_the_name():
    assert actual(layer("gemm", tensors(INT8, INT8), name=NODE, metadata=mentions("another"))) == "not named"


def test_reformats_and_kernels_are_counted():
    evidence = read(
        layer("Reformat", tensors(HALF), name=f"Reformatting CopyNode for Input Tensor 0 to {NODE}", metadata=""),
        layer("gemm", tensors(INT8, INT8), INT8_XMMA),
        layer("Reformat", tensors(INT8), metadata=""),
        layer("kgen", tensors(HALF), metadata=""),
    )
    assert (evidence.kernels, evidence.reformats) == (4, 2)
    assert evidence.layers[NODE].actual == "int8"
    assert INT8_XMMA in evidence.layers[NODE].source


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"Layers"', "{}", '{"Layers": null}', '{"layers": []}', "Layers:\nName: a, LayerType: gemm"]
)
def test_invalid_layer_information(text):
    with pytest.raises(ArtifactError, match=r"cannot be parsed|only the names"):
        read_inspector(text, frozenset((NODE,)))


@pytest.mark.parametrize("layers", [[], ["a", "b"], [NODE], {"Name": NODE}, "text"])
def test_an_engine_that_reports_names_only(layers):
    """Built without detailed verbosity: the layers are listed without their types."""
    with pytest.raises(ArtifactError, match="detailed profiling verbosity"):
        read_inspector(json.dumps({"Layers": layers}), frozenset((NODE,)))


@pytest.mark.parametrize(
    "change",
    [
        {"Inputs": None},
        {"Inputs": "Int8 x Int8"},
        {"Inputs": {"0": "Int8", "1": "Int8"}},
        {"Inputs": ["Int8", "Int8"]},
        {"Inputs": [None, None]},
        {"Inputs": [{"Format/Datatype": None}, {"Format/Datatype": 8}]},
        {"Inputs": [{"Format/Datatype": ["Int8"]}, {}]},
        {"TacticName": None},
        {"LayerType": None},
        {"LayerType": 7},
        {"Weights": None},
        {"Weights": "Int8"},
        {"Weights": {"Type": None}},
        {"Weights": {"Type": ["Int8"]}, "Inputs": []},
        {"Metadata": None, "Name": None},
    ],
)
def test_fields_of_another_type_are_not_evidence(change):
    damaged = {**layer("gemm", tensors(INT8), ""), **change}
    assert actual(damaged) in ("unknown", "not named")


def test_missing_fields_are_not_evidence():
    whole = layer("gemm", tensors(INT8, INT8), "")
    assert actual(whole) == "int8"
    for field in ("LayerType", "Inputs", "Metadata"):
        assert actual({name: value for name, value in whole.items() if name != field}) in ("unknown", "not named")
    assert read({}) == EngineEvidence({}, kernels=1, reformats=0, steps=(PlanStep("other", "", (), 0, 0, 0),))


def test_a_receipt_from_inspector_output():
    """Two thirds in INT8; the receipt lists the fallback with its tactic."""
    nodes = (NODE, "blocks.0.attn.kv/MatMul")
    graph = (Layer(nodes[0], "MatMul", 200, "int8", ""), Layer(nodes[1], "MatMul", 100, "int8", ""))
    evidence = read(
        layer("gemm", tensors(INT8, INT8), INT8_XMMA),
        layer("gemm", tensors(HALF, HALF), FP16_XMMA, metadata=mentions(nodes[1])),
        layer("Reformat", tensors(INT8), metadata=""),
        nodes=nodes,
    )
    receipt = make_receipt(graph, evidence, "int8")
    assert receipt.int8_mac_fraction == pytest.approx(2 / 3)
    assert (receipt.kernels, receipt.reformats) == (3, 1)
    (fallback,) = receipt.fallbacks
    assert (fallback.layer, fallback.requested, fallback.actual) == (nodes[1], "int8", "fp16")
    assert FP16_XMMA in fallback.reason
    check_receipt(receipt, 0.66)
    with pytest.raises(VerdictError, match=r"kv/MatMul: int8 -> fp16, 33\.3% of MACs"):
        check_receipt(receipt, 0.67)


def broken(kind):
    """A graph of two products of 8 x 16 x 16: "right/MatMul", and "wrong/MatMul" with the fault `kind`."""
    g = Graph(8, 16)
    first = g.node("MatMul", [g.pair("image"), g.int8_weight(g.weight("w1", 16, 16), 1)], "right/MatMul")
    if kind == "uint8":
        scale, zero = g.store("u_scale", np.float32(0.05)), g.store("u_zero", np.uint8(0))
        codes = g.node("QuantizeLinear", [first, scale, zero], "u/Q")
        operand = g.node("DequantizeLinear", [codes, scale, zero], "u/DQ")
    else:
        operand = g.pair(first)
    if kind == "one side":
        other = g.node("Transpose", [first], "transpose", perm=[0, 2, 1])
    else:
        other = g.int8_weight(g.weight("w2", 16, 16), 0 if kind == "axis" else 1)
    second = g.node("MatMul", [operand, other], "wrong/MatMul")
    return g.model(second, 8, 8 if kind == "one side" else 16)


@pytest.mark.parametrize(
    ("kind", "rule", "floats", "words"),
    [
        ("axis", "weight-axis", True, "axis 0, which is summed over"),
        ("one side", "one-sided-matmul", True, "no Q/DQ on operand B"),
        ("uint8", "uint8", False, "operand A is quantized to uint8, which TensorRT reads as int8"),
    ],
)
def test_a_broken_graph_is_caught_before_and_after(kind, rule, floats, words):
    """By lint before the build, and by the receipt after it even if the engine computes the faulty product in INT8."""
    model = broken(kind)
    assert rule in {finding.rule for finding in lint_graph(model)}
    facts = graph_facts(model)
    operands = tensors(HALF, HALF) if floats else tensors(INT8, INT8)
    evidence = read(
        layer("gemm", tensors(INT8, INT8), INT8_XMMA, metadata=mentions("right/MatMul")),
        layer("gemm", operands, metadata=mentions("wrong/MatMul")),
        nodes=facts.traceable,
    )
    receipt = make_receipt(facts.layers, evidence, "int8")
    (fallback,) = receipt.fallbacks
    assert fallback.layer == "wrong/MatMul"
    assert words in fallback.reason
    right = next(x.macs for x in facts.layers if x.name == "right/MatMul") / sum(x.macs for x in facts.layers)
    assert receipt.int8_mac_fraction == pytest.approx(right)
    with pytest.raises(VerdictError, match="wrong/MatMul"):
        check_receipt(receipt, 0.95)


def test_a_correct_graph_is_not_caught():
    model = broken("")
    assert [finding for finding in lint_graph(model) if finding.severity == "refused"] == []
    facts = graph_facts(model)
    evidence = read(layer("gemm", tensors(INT8, INT8), metadata=mentions(*facts.traceable)), nodes=facts.traceable)
    assert make_receipt(facts.layers, evidence, "int8").fallbacks == ()
    assert {x.requested for x in facts.layers} == {"int8"}


def test_uint8_weights_are_reported_too():
    g = Graph(8, 16)
    inputs = [g.store("w_q", np.ones((16, 16), np.uint8)), g.store("w_s", np.float32(0.1)), g.store("w_z", np.uint8(0))]
    out = g.node("MatMul", [g.pair("image"), g.node("DequantizeLinear", inputs, "w/DQ")], "m")
    (product,) = graph_facts(g.model(out, 8, 16)).layers
    assert (product.requested, product.problem) == ("uint8", "operand B is quantized to uint8, which TensorRT reads as int8")


def test_a_graph_input_that_is_not_a_tensor_is_refused():
    """`load_graph` refuses a graph that takes a sequence."""
    sequence = onnx.helper.make_tensor_sequence_value_info("images", onnx.TensorProto.FLOAT, [4])
    at = onnx.helper.make_node("SequenceAt", ["images", "zero"], ["image"], name="at")
    out = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [4])
    zero = onnx.numpy_helper.from_array(np.int64(0), "zero")
    graph = onnx.helper.make_graph([at], "g", [sequence], [out], [zero])
    with pytest.raises(GraphError, match="unsupported graph inputs or outputs"):
        graph_facts(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]))
