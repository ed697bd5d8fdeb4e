"""One minimal planted graph per rule, next to the sound graph that it was made from.

What TensorRT does with each was read from its parser and from engines built by TensorRT-RTX 1.7; here it is the rule's
verdict that is tested.
"""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.lint import RULES, lint_graph

N = h.make_node
K, M = 8, 6  # weight (K, M)


class Sound:
    """x (4, K) . weight (K, M), both sides quantized soundly; tests spoil a copy."""

    def __init__(self):
        self.constants = {
            "as": np.float32(0.02),
            "az": np.int8(0),
            "w": np.arange(K * M, dtype=np.int8).reshape(K, M),
            "ws": np.full(M, 0.01, np.float32),
            "wz": np.zeros(M, np.int8),
        }
        self.head = [
            N("QuantizeLinear", ["x", "as", "az"], ["xq"], name="q"),
            N("DequantizeLinear", ["xq", "as", "az"], ["xd"], name="dq"),
        ]
        self.weight = [N("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wdq", axis=1)]
        self.tail = [N("MatMul", ["xd", "wd"], ["y"], name="mm")]
        self.inputs = [("x", T.FLOAT, [4, K])]
        self.opset = 20

    def findings(self, make_model):
        nodes = [*self.head, *self.weight, *self.tail]
        return lint_graph(make_model(nodes, self.constants, self.inputs, [("y", T.FLOAT, None)], self.opset))


@pytest.fixture
def sound():
    return Sound()


def rules(findings):
    return {f.rule for f in findings}


def test_a_sound_graph_has_no_findings(sound, make_model):
    assert sound.findings(make_model) == ()


def test_a_float_graph_is_one_finding(tiny):
    (finding,) = lint_graph(tiny)
    assert (finding.rule, finding.severity, finding.node) == ("float-graph", "falls_back", "graph")
    assert "insert_qdq" in finding.message


def test_messages_name_the_finding_and_the_remedy(sound, make_model):
    sound.constants["az"] = np.int8(3)
    finding = sound.findings(make_model)[0]
    assert finding.node == "q"
    assert "zero-point [3]" in finding.message
    assert "Remedy: calibrate with zero-point 0" in finding.message


@pytest.mark.parametrize(
    ("constants", "rule", "node"),
    [
        ({"az": np.int8(-5)}, "zero-point", "dq"),
        ({"az": np.uint8(0)}, "uint8", "q"),
        ({"az": np.int16(0)}, "unsupported-type", "q"),
        ({"as": np.float32(0)}, "scale-invalid", "q"),
        ({"as": np.float32(-0.02)}, "scale-invalid", "q"),
        ({"as": np.float32(np.nan)}, "scale-invalid", "q"),
        ({"as": np.float32(np.inf)}, "scale-invalid", "q"),
        ({"ws": np.array([0.1] * (M - 1) + [0], np.float32)}, "scale-invalid", "wdq"),
        ({"ws": np.full(M - 1, 0.1, np.float32), "wz": np.zeros(M - 1, np.int8)}, "scale-length", "wdq"),
        ({"as": np.full(K, 0.02, np.float32), "az": np.zeros(K, np.int8)}, "activation-per-channel", "mm"),
    ],
)
def test_spoiled_parameters(sound, make_model, constants, rule, node):
    sound.constants |= constants
    found = sound.findings(make_model)
    assert rules(found) == {rule}
    assert node in {f.node for f in found}
    assert {f.severity for f in found} == {RULES[rule].severity}


def test_a_quantizer_without_zero_point_is_uint8(sound, make_model):
    del sound.head[0].input[2:]
    del sound.head[1].input[2:]
    assert rules(sound.findings(make_model)) == {"uint8"}


def test_a_dequantizer_without_zero_point_is_fine(sound, make_model):
    del sound.head[1].input[2:]
    del sound.weight[0].input[2:]
    assert sound.findings(make_model) == ()


def test_weight_scales_along_the_sum(sound, make_model):
    sound.constants |= {"ws": np.full(K, 0.01, np.float32), "wz": np.zeros(K, np.int8)}
    sound.weight = [N("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wdq", axis=0)]
    (finding,) = sound.findings(make_model)
    assert (finding.rule, finding.node, finding.severity) == ("weight-axis", "mm", "falls_back")
    sound.weight = [N("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wdq", axis=-2)]
    assert rules(sound.findings(make_model)) == {"weight-axis"}


@pytest.mark.parametrize(("axis", "sound_axis"), [(0, True), (1, False)])
def test_the_axis_is_followed_through_a_transposition(sound, make_model, axis, sound_axis):
    channels = (M, K)[axis]
    sound.constants |= {
        "w": np.ones((M, K), np.int8),
        "ws": np.full(channels, 0.01, np.float32),
        "wz": np.zeros(channels, np.int8),
    }
    sound.weight = [
        N("DequantizeLinear", ["w", "ws", "wz"], ["wt"], axis=axis),
        N("Transpose", ["wt"], ["wd"], perm=[1, 0]),
    ]
    assert rules(sound.findings(make_model)) == (set() if sound_axis else {"weight-axis"})


@pytest.mark.parametrize(("trans", "axis", "clean"), [(0, 1, True), (0, 0, False), (1, 0, True), (1, 1, False)])
def test_the_axis_of_gemm(sound, make_model, trans, axis, clean):
    shape = (M, K) if trans else (K, M)
    sound.constants |= {
        "w": np.ones(shape, np.int8),
        "ws": np.full(shape[axis], 0.01, np.float32),
        "wz": np.zeros(shape[axis], np.int8),
    }
    sound.weight = [N("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis)]
    sound.tail = [N("Gemm", ["xd", "wd"], ["y"], transB=trans)]
    assert rules(sound.findings(make_model)) == (set() if clean else {"weight-axis"})


@pytest.mark.parametrize(("axis", "clean"), [(0, True), (1, False)])
def test_the_axis_of_a_convolution(sound, make_model, axis, clean):
    sound.inputs = [("x", T.FLOAT, [1, K, 5, 5])]
    channels = (M, K)[axis]
    sound.constants |= {
        "w": np.ones((M, K, 3, 3), np.int8),
        "ws": np.full(channels, 0.01, np.float32),
        "wz": np.zeros(channels, np.int8),
    }
    sound.weight = [N("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis)]
    sound.tail = [N("Conv", ["xd", "wd"], ["y"])]
    assert rules(sound.findings(make_model)) == (set() if clean else {"weight-axis"})


@pytest.mark.parametrize(
    ("shape", "left", "sound_axis"),
    [((5, 4), True, 0), ((3, K, M), False, 2), ((3, 5, 4), True, 1)],
)
def test_the_axis_of_a_weight_of_any_rank_on_either_side(sound, make_model, shape, left, sound_axis):
    for axis, channels in enumerate(shape):
        sound.constants |= {
            "w": np.ones(shape, np.int8),
            "ws": np.linspace(0.01, 0.02, channels, dtype=np.float32),
            "wz": np.zeros(channels, np.int8),
        }
        sound.weight = [N("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis)]
        sound.tail = [N("MatMul", ["wd", "xd"] if left else ["xd", "wd"], ["y"])]
        assert rules(sound.findings(make_model)) == (set() if axis == sound_axis else {"weight-axis"})


def test_a_transposed_convolution(sound, make_model):
    sound.inputs = [("x", T.FLOAT, [1, K, 5, 5])]
    sound.constants |= {"w": np.ones((K, M, 2, 2), np.int8)}
    sound.tail = [N("ConvTranspose", ["xd", "wd"], ["y"], name="up")]
    (finding,) = sound.findings(make_model)
    assert (finding.rule, finding.node, finding.severity) == ("float-operator", "up", "falls_back")


def test_one_sided_products(sound, make_model):
    weight, head = sound.weight, sound.head
    sound.tail = [N("MatMul", ["x", "wd"], ["y"], name="mm")]
    assert rules(sound.findings(make_model)) == {"weight-only"}
    sound.tail, sound.weight = [N("MatMul", ["xd", "wf"], ["y"], name="mm")], []
    sound.constants["wf"] = np.ones((K, M), np.float32)
    assert rules(sound.findings(make_model)) == {"activation-only"}
    sound.inputs.append(("z", T.FLOAT, [K, M]))
    sound.tail = [N("MatMul", ["xd", "z"], ["y"], name="mm")]
    assert rules(sound.findings(make_model)) == {"one-sided-matmul"}
    sound.head, sound.weight = head, weight


@pytest.mark.parametrize(
    ("node", "clean"),
    [
        (N("Relu", ["xd"], ["xm"]), False),
        (N("Identity", ["xd"], ["xm"]), True),
        (N("Reshape", ["xd", "shape"], ["xm"]), True),
        (N("Concat", ["xd", "xd"], ["xm"], axis=0), True),
        (N("Concat", ["xd", "x"], ["xm"], axis=0), False),
    ],
)
def test_moving_values_keeps_int8_and_computing_does_not(sound, make_model, node, clean):
    sound.constants["shape"] = np.array([2, 2, K])
    sound.tail = [node, N("MatMul", ["xm", "wd"], ["y"], name="mm")]
    assert rules(sound.findings(make_model)) == (set() if clean else {"weight-only"})


def test_concatenating_different_scales_does_not_keep_int8(sound, make_model):
    sound.constants["bs"] = np.float32(0.5)
    sound.head += [
        N("QuantizeLinear", ["x", "bs", "az"], ["xq2"]),
        N("DequantizeLinear", ["xq2", "bs", "az"], ["xd2"]),
        N("Concat", ["xd", "xd2"], ["xm"], axis=0),
    ]
    sound.tail = [N("MatMul", ["xm", "wd"], ["y"], name="mm")]
    assert rules(sound.findings(make_model)) == {"weight-only"}


def test_unlike_pair(sound, make_model):
    sound.constants["bs"] = np.float32(0.5)
    sound.head[1].input[1] = "bs"
    (finding,) = sound.findings(make_model)
    assert (finding.rule, finding.severity, finding.node) == ("unlike-pair", "note", "dq")


def test_int32_bias(sound, make_model):
    sound.constants |= {"bq": np.ones(M, np.int32), "bs": np.full(M, 1e-4, np.float32), "bz": np.zeros(M, np.int32)}
    sound.tail = [
        N("DequantizeLinear", ["bq", "bs", "bz"], ["b"], name="bias", axis=0),
        N("Gemm", ["xd", "wd", "b"], ["y"]),
    ]
    (finding,) = sound.findings(make_model)
    assert (finding.rule, finding.severity, finding.node) == ("int32-bias", "refused", "bias")


def test_scales_that_are_missing_or_computed(sound, make_model):
    del sound.constants["as"]
    assert rules(sound.findings(make_model)) == {"scale-missing"}
    sound.inputs.append(("as", T.FLOAT, []))
    assert rules(sound.findings(make_model)) == {"scale-not-constant"}


def test_half_precision_scales_need_opset_19(sound, make_model):
    sound.constants |= {"as": np.float16(0.02), "ws": np.full(M, 0.01, np.float16)}
    sound.inputs = [("x", T.FLOAT16, [4, K])]
    assert sound.findings(make_model) == ()
    sound.opset = 18
    assert rules(sound.findings(make_model)) == {"fp16-scale-opset"}


def test_opset_beyond_20(sound, make_model):
    sound.opset = 21
    (finding,) = sound.findings(make_model)
    assert (finding.rule, finding.severity) == ("opset", "note")


def test_norms_and_residual_additions(sound, make_model):
    sound.inputs.append(("z", T.FLOAT, [4, K]))
    sound.constants |= {"ln": np.ones(K, np.float32), "bias": np.ones(K, np.float32)}
    sound.tail += [
        N("LayerNormalization", ["xd", "ln"], ["n"], name="ln"),
        N("ReduceL2", ["xd"], ["r"], name="l2"),
        N("Add", ["z", "xd"], ["s"], name="residual"),
        N("Add", ["xd", "bias"], ["t"], name="bias_add"),
    ]
    found = sound.findings(make_model)
    assert {(f.rule, f.node) for f in found} == {("norm-input", "ln"), ("norm-input", "l2"), ("residual-add", "residual")}
    assert {f.severity for f in found} == {"note"}


def test_integer_operators(make_model):
    nodes = [
        N("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        N("MatMulInteger", ["q", "w", "z"], ["y"], name="integer"),
    ]
    model = make_model(nodes, {"w": np.ones((K, M), np.int8)}, [("x", T.FLOAT, [4, K])], [("y", T.INT32, [4, M])])
    found = lint_graph(model)
    assert rules(found) == {"integer-operator"}
    assert found[-1].node == "integer"


def test_other_types_and_blocks(make_model):
    constants = {"w": h.make_tensor("w", T.INT4, [K, M], np.ones(K * M, int)), "ws": np.ones((2, M), np.float32)}
    nodes = [
        N("DequantizeLinear", ["w", "ws"], ["wd"], axis=0, block_size=K // 2, name="wdq"),
        N("MatMul", ["x", "wd"], ["y"], name="mm"),
    ]
    tensor = constants.pop("w")
    model = make_model(nodes, constants, [("x", T.FLOAT, [4, K])], [("y", T.FLOAT, [4, M])], 21)
    model.graph.initializer.append(tensor)
    assert rules(lint_graph(model)) >= {"other-type", "blocked", "opset"}


def test_every_rule_has_a_planted_graph():
    """Named in this file at least twice over: a rule without a test would be a promise without one."""
    from pathlib import Path

    text = Path(__file__).read_text()
    assert [rule for rule in RULES if f'"{rule}"' not in text] == []
