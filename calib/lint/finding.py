"""The table of all lint rules, and the finding that a rule reports."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["refused", "falls_back", "note"]
"""refused: TensorRT rejects the graph or computes other numbers than it specifies. falls_back: the node silently runs in float.
note: legal, and usually not intended."""


@dataclass(frozen=True)
class LintFinding:
    """One place in a graph: unique node name or "graph", key of RULES, and what was found, why it matters, and the remedy."""

    node: str
    rule: str
    severity: Severity
    message: str


class Rule(NamedTuple):
    """Severity, consequence and remedy of a rule; a finding adds what was found."""

    severity: Severity
    consequence: str
    remedy: str


RULES: dict[str, Rule] = {
    "float-graph": Rule("falls_back", "every layer stays in float", "insert Q/DQ first: calib.qdq_writer.insert_qdq"),
    "opset": Rule("note", "TensorRT 10.0 to 10.3 parse opset 9 to 20", "export with opset 20"),
    "integer-operator": Rule("refused", "TensorRT's parser has no such operator", "write the graph in Q/DQ format"),
    "zero-point": Rule("refused", "TensorRT takes symmetric quantization only", "calibrate with zero-point 0"),
    "uint8": Rule(
        "refused",
        "TensorRT reads it as INT8 with no more than a warning: values above 127 saturate",
        "quantize to int8 with an explicit int8 zero-point of 0",
    ),
    "int32-bias": Rule("refused", "TensorRT does not dequantize INT32", "leave the bias in float"),
    "unsupported-type": Rule("refused", "TensorRT has no such quantized type", "quantize to int8"),
    "scale-missing": Rule("refused", "the parser finds no such tensor", "add the scale as an initializer"),
    "scale-invalid": Rule(
        "refused", "TensorRT takes positive scales only, and computes NaN from an infinite one", "calibrate again"
    ),
    "scale-not-constant": Rule("falls_back", "INT8 needs scales known at build time", "store the scale as an initializer"),
    "scale-length": Rule("refused", "a per-channel scale needs one number per channel", "correct axis or scale"),
    "fp16-scale-opset": Rule(
        "refused", "FP16 scales exist since opset 19, ONNX Runtime refuses them before", "export with opset 19 or 20"
    ),
    "weight-axis": Rule(
        "falls_back",
        "a scale that varies along the summation cannot be factored out of the sum",
        "use the axis of the output channels: MatMul (..., K, N) the last, constant (..., M, K) the last but one, Gemm 1, "
        "transB 0, Conv 0",
    ),
    "activation-per-channel": Rule("falls_back", "TensorRT has per-tensor activations only", "use one scale for the tensor"),
    "one-sided-matmul": Rule("falls_back", "a product of two activations needs both in INT8", "add Q/DQ on the other side"),
    "weight-only": Rule("falls_back", "the other operand is float", "add Q/DQ on the activation"),
    "activation-only": Rule("falls_back", "the weight is float", "quantize the weight per output channel"),
    "float-operator": Rule("falls_back", "TensorRT-RTX runs it in float whatever its scales", "leave it in float"),
    "unlike-pair": Rule(
        "note", "a pair with two scales multiplies the tensor by their ratio", "give both nodes of the pair one scale"
    ),
    "norm-input": Rule("note", "rounding before a norm costs accuracy and saves nothing", "remove the pair from this input"),
    "residual-add": Rule(
        "note", "rounding of the residual stream accumulates over blocks", "remove the pairs from the addition"
    ),
    "other-type": Rule("note", "not INT8: needs a GPU generation and a TensorRT release with it", "check both, or use int8"),
    "blocked": Rule("note", "block-wise scales are for weight-only formats: no INT8 kernel uses them", "use one per channel"),
}


def make_finding(rule: str, node: str, found: str) -> LintFinding:
    """A finding of a rule of RULES."""
    severity, consequence, remedy = RULES[rule]
    return LintFinding(node, rule, severity, f"{found}: {consequence}. Remedy: {remedy}.")
