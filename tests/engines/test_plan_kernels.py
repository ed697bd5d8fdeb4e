"""What a plan runs: kinds, blocks and bytes of its steps. Oracle: a plan written by hand, and counts made by hand."""

import json
import re

import pytest

from calib.errors import ArtifactError
from engines.engine_inspector import inspected_layers, inspected_steps, read_profile
from engines.layer_records import EngineEvidence, Layer
from engines.plan_kernels import PlanStep, StepTotal, block_of_node, kind_of_generated, summarize_steps
from engines.precision_receipt import make_receipt
from engines.rtx_plan_text import read_plan, read_steps

PLAN = b"""header {
  version = 5
  shape_inputs={ "{ForeignNode[image...logits]}_shapeInput.1" }
}
descriptors {
  tensor={ alignment=128 dims={ 1 } mem_prop=100 name="batch" offset=0 region="system_hmem" type=int64 }
  tensor={ alignment=128 dims={ 1 } mem_prop=100 name="tokens" offset=0 region="system_hmem" type=int64 }
  tensor={ alignment=32 dims={ "batch" 3 8 8 } mem_prop=0 name="image.1" offset=0 type=float }
  tensor={ alignment=128 dims={ "batch" 4 8 8 } mem_prop=0 name="padded" offset=0 type=half }
  tensor={ alignment=128 const_payload_size=2304 dims={ 32 4 3 3 } name="w_conv" offset=0 type=half }
  tensor={ alignment=128 dims={ "batch" 32 7 7 } mem_prop=0 name="map" offset=0 type=half }
  tensor={ alignment=128 dims={ "tokens" 32 } mem_prop=0 name="codes" offset=0 type=int8 }
  tensor={ alignment=128 const_payload_size=3072 dims={ 32 96 } name="w_joint" offset=0 type=int8 }
  sub_tensor={ base="w_joint" const_offset=0 dims={ 32 32 } mem_prop=0 name="w_q" offset=0 type=int8 }
  tensor={ alignment=128 dims={ "tokens" 32 } mem_prop=0 name="q" offset=0 type=half }
  tensor={ alignment=128 const_payload_size=2 dims={ 1 } mem_prop=512 name="scale" offset=0 type=half }
}
main {
 label bb1:
  shape_call={ name="shapes" stream=0  layers="" subg_id=0 }
  function={ name=__myl_CastReplConc fqn=__myl_CastReplConc_0x1 args={ "image.1" "tokens" "batch" "padded" } \
input_args={ "image.1" "tokens" "batch" } shape_args_count=2 output_args={ "padded" } kernel_kind=1 \
layers="[ONNX Layer: image/Cast][ONNX Layer: stem.0/Conv]" }
  runtime_fusion={ name=__myl_CorrRelu input_args={ "padded" "w_conv" "batch" } output_args={ "map" } binary=0 \
layers="[ONNX Layer: stem.0/Conv][ONNX Layer: stem.1/Relu]" backbone=conv }
  function={ name=__myl_CastMeanSubMulMeanAddSqrtDivMulMinMaxRounCast fqn=__myl_x_0x2 input_args={ "map" "map" "scale" } \
output_args={ "codes" } kernel_kind=2 layers="[ONNX Layer: blocks.0.norm/LayerNormalization]\
[ONNX Layer: blocks.0.norm/LayerNormalization_output/QuantizeLinear]" }
  fully_connected={ name="blocks.0.q/MatMul" output={"q" } input={"codes" "w_q" "scale" } \
layers="[ONNX Layer: blocks.0.q/MatMul]" }
  signal={ name="joined" stream=1 }
  wait={ name="join" stream=0 }
  function={ name=__myl_Tran fqn=__myl_Tran_0x3 input_args={ "q" "tokens" } output_args={ "codes" } kernel_kind=8 }
}
shape_main {
 label bb2:
  copy={ name="d2s" output={"{ForeignNode[image...logits]}_shape" } input={"{ForeignNode[image...logits]}_shapeInput.1" } }
  memset={ name="init" output={"__s^49i64" }  src="49i64" stream=0 }
  memset={ name="init2" output={"__s^M1i64" }  src="-1i64" stream=0 }
  mul={ name="m" output={"negative" } input={"{ForeignNode[image...logits]}_shape" "__s^M1i64" } stream=0 }
  mul={ name="n" output={"one" } input={"negative" "__s^M1i64" } stream=0 }
  mul={ name="v" output={"volume" } input={"one" "__s^49i64" } stream=0  layers="" }
  eq={ name="e" output={"same" } input={"volume" "__s^49i64" } stream=0 }
  copy={ name="s2d" output={"tokens" } input={"volume" } stream=0 }
  copy={ name="s2d2" output={"batch" } input={"{ForeignNode[image...logits]}_shape" } stream=0 }
}
\x00binary header {
  version = 4
  region = { name=runtime-fusion-consts size=516 alignment=128 instance=0 }
}
descriptors {
  tensor={ alignment=2 dims={ 1 4 3 3 } mem_prop=0 name="w_conv" offset=0 region="" type=half }
  tensor={ alignment=8 dims={ 1 } mem_prop=0 name="batch" offset=0 region="" type=int64 }
}
main {
  corrltn={ name="stem.0/Conv" output={"map" } input={"padded" "w_conv" } layers="[ONNX Layer: stem.0/Conv]" }
  mul={ name="relu" output={"map" } input={"map" "map" } stream=0 }
}
"""
STEPS = (  # kind, bytes of constants, bytes of the other tensors, counted by hand
    ("pad", 0, 3 * 8 * 8 * 4 + 4 * 8 * 8 * 2),
    ("product", 32 * 4 * 3 * 3 * 2, 4 * 8 * 8 * 2 + 32 * 7 * 7 * 2),
    ("reduction", 2, 32 * 7 * 7 * 2 + 49 * 32),
    ("product", 32 * 32 + 2, 49 * 32 + 49 * 32 * 2),
    ("reformat", 0, 49 * 32 * 2 + 49 * 32),
)


def counted(plan):
    return tuple((step.kind, step.weight_bytes, step.activation_bytes) for step in read_steps(plan))


def test_steps_and_bytes_of_a_plan_are_those_counted_by_hand():
    assert counted(PLAN) == STEPS


def test_the_parts_of_a_runtime_fusion_are_not_counted_again():
    alone = PLAN.replace(b"name=runtime-fusion-consts", b"name=devmem")
    assert len(counted(alone)) == len(STEPS) + 2, "control: as a program of its own, both of its lines are steps"


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        (b'"batch" 32 7 7', b'"batch" 64 7 7', {1: 3136, 2: 3136}),
        (b'src="49i64"', b'src="98i64"', {2: 1568, 3: 4704, 4: 4704}),
        (b'name="q" offset=0 type=half', b'name="q" offset=0 type=float', {3: 3136, 4: 3136}),
    ],
)
def test_other_dims_and_types_move_other_bytes(old, new, changed):
    expected = [(kind, weights, size + changed.get(i, 0)) for i, (kind, weights, size) in enumerate(STEPS)]
    assert counted(PLAN.replace(old, new)) == tuple(expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'mul={ name="v"', b'gather={ name="v"'),
        (b'output={"tokens" }', b'output={"others" }'),
        (b'name="codes" offset=0 type=int8', b'name="codes" offset=0 type=int4'),
    ],
)
def test_a_size_that_is_not_known_is_not_a_number(old, new):
    unknown = summarize_steps(read_steps(PLAN.replace(old, new)))
    known = summarize_steps(read_steps(PLAN))
    assert known.total.uncounted == 0
    assert unknown.total.uncounted == 3
    assert unknown.total.steps == known.total.steps


@pytest.mark.parametrize("plan", [b"", PLAN.replace(b"main {", b"program {"), b"\nmain {\n}", b"\nmain {"])
def test_another_format_has_no_steps(plan):
    assert read_steps(plan) == ()
    assert summarize_steps(read_steps(plan)) is None
    assert read_plan(plan, frozenset()).kernels is None


def test_totals_by_kind_and_block():
    plan = summarize_steps(read_steps(PLAN))
    by_kind = {kind: [row for row in STEPS if row[0] == kind] for kind in ("product", "reduction", "reformat", "pad")}
    assert plan.kinds == tuple(
        StepTotal(kind, len(rows), sum(row[1] for row in rows), sum(row[2] for row in rows)) for kind, rows in by_kind.items()
    )
    assert plan.total.moved_bytes == sum(weights + size for _, weights, size in STEPS)
    assert (plan.steps_of("pad"), plan.steps_of("attention")) == (1, 0)
    assert [(block.name, block.steps) for block in plan.blocks] == [("blocks.0", 3)], "the transpose belongs to its neighbour"
    assert [step.kind for step in plan.block_steps] == ["reduction", "product", "reformat"]
    assert plan.block == "blocks.0"


def test_a_step_between_two_blocks_belongs_to_the_one_it_computes_more_of():
    nodes = ("blocks.0.ffn/MatMul", "blocks.0/Add", "blocks.1.norm/LayerNormalization")
    quantized = tuple(f"blocks.1.x{i}_output/QuantizeLinear" for i in range(4))
    step = PlanStep("pointwise", "MulAdd", nodes + quantized, 0, 8)
    assert summarize_steps([step] * 3).block == "blocks.0"
    assert summarize_steps([PlanStep("pointwise", "Mul", quantized, 0, 8)] * 3).block == "blocks.1"
    assert summarize_steps([PlanStep("pointwise", "Mul", ("p2o.Conv.3",), 0, 8)] * 3).blocks == ()


@pytest.mark.parametrize(
    ("node", "block"),
    [
        ("blocks.3.attn.q/MatMul", "blocks.3"),
        ("/layers/layers.1/blocks/blocks.0/attn/MatMul", "/layers/layers.1"),
        ("model.12/conv", "model.12"),
        ("p2o.Conv.3", ""),
        ("head/Gemm", ""),
        ("", ""),
    ],
)
def test_block_of_a_node(node, block):
    assert block_of_node(node) == block


@pytest.mark.parametrize(
    ("name", "operands", "kind"),
    [
        ("MulAddAddCastMeanSubMulMeanAddSqrtDivMul", 3, "reduction"),
        ("MaxrSubExpSumDiv", 1, "reduction"),
        ("MulAddDivCastErfCastAddMulMulMulMinMaxRounCast", 2, "pointwise"),
        ("AddMulMinMaxRounCastReshTran", 2, "pointwise"),
        ("MulMinMaxRounCast", 1, "reformat"),
        ("Tran", 1, "reformat"),
        ("CastReplConc", 1, "pad"),
        ("MoveReshReplConcResh", 1, "pad"),
        ("MulMinMaxRounCastReplConc", 1, "pad"),
        ("ReplConc", 2, "copy"),
        ("SlicMove", 1, "copy"),
        ("CastMulFc", 2, "product"),
        ("_gemm_mha_v2", 3, "attention"),
        ("", 0, "other"),
    ],
)
def test_kind_of_a_generated_kernel(name, operands, kind):
    assert kind_of_generated(name, operands) == kind


def test_a_kernel_with_a_cut_name_reduces_where_the_plan_says_so():
    assert kind_of_generated("MulCastAddMulAddEtc", 1) == "pointwise"
    assert kind_of_generated("MulCastAddMulAddEtc", 1, reduces=True) == "reduction"


def layer(kind, name, inputs, outputs, **fields):
    def tensors(side):
        return [{"Name": n, "Dimensions": dims, "Format/Datatype": f"Row major linear {t} format"} for n, dims, t in side]

    return {"LayerType": kind, "Name": name, "Inputs": tensors(inputs), "Outputs": tensors(outputs), **fields}


LAYERS = [
    layer("Reformat", "Reformatting CopyNode", [("image", [1, 3, 8, 8], "FP32")], [("x", [1, 3, 8, 8], "Int8")]),
    layer(
        "CaskConvolution",
        "blocks.0.conv/Conv + blocks.0.act/Relu",
        [("x", [1, 3, 8, 8], "Int8"), ("x", [1, 3, 8, 8], "Int8")],
        [("y", [1, 4, 8, 8], "FP16")],
        Weights={"Type": "Int8", "Count": 108},
    ),
    layer("kgen", "__myl_MeanSubMul_myl0_3", [("y", [1, 4, 8, 8], "FP16")], [("z", [1, 4], "FP32")]),
    layer("kgen", "__myl_Move_0x3f", [("z", [-1, 4], "FP32")], [("w", [1, 4], "FP32")]),
    layer("signal", "^signal^0", [], []),
    layer("gemm_mha_v2", "_gemm_mha_v2_0x12", [("w", [1, 4], "FP16")], [("v", [1, 4], "FP16")]),
]


def test_steps_of_the_engine_inspector():
    steps = inspected_steps(inspected_layers(json.dumps({"Layers": LAYERS})))
    assert [(step.kind, step.weight_bytes, step.activation_bytes) for step in steps] == [
        ("reformat", 0, 192 * 4 + 192),
        ("product", 108, 192 + 256 * 2),
        ("reduction", 0, 256 * 2 + 4 * 4),
        ("copy", 0, None),
        ("attention", 0, 16),
    ]
    assert steps[1].nodes == ("blocks.0.conv/Conv", "blocks.0.act/Relu")


def test_a_receipt_holds_the_steps():
    graph = (Layer("blocks.0.q/MatMul", "MatMul", 200, "int8", ""),)
    assert make_receipt(graph, read_plan(PLAN, frozenset(("blocks.0.q/MatMul",))), "int8").plan.total.steps == len(STEPS)
    assert make_receipt(graph, EngineEvidence(), "int8").plan is None


def test_profile_of_trtexec():
    layers = [{"name": "a", "timeMs": 2.0, "averageMs": 0.02, "percentage": 40}, {"name": "b", "averageMs": 0.03}]
    assert read_profile(json.dumps([{"count": 100}, *layers])) == [("a", 0.02), ("b", 0.03)]


@pytest.mark.parametrize("text", ["", "[", "{}", "null", "[1]", '[{"name": "a"}]', '[{"name": "a", "averageMs": "fast"}]'])
def test_what_is_not_a_profile(text):
    with pytest.raises(ArtifactError, match="not a profile of trtexec"):
        read_profile(text)


def test_an_int8_plan_in_which_a_cast_is_added_has_one_step_more():
    """The measure must see what it is for."""
    line = re.search(rb"  function=\{ name=__myl_Tran .*\n", PLAN)[0]
    more = summarize_steps(read_steps(PLAN.replace(line, line + line)))
    fewer = summarize_steps(read_steps(PLAN.replace(line, b"")))
    assert (fewer.steps_of("reformat"), more.steps_of("reformat")) == (0, 2)
    assert more.total.moved_bytes - fewer.total.moved_bytes == 2 * STEPS[4][2]
