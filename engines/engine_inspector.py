r"""Read the precision of each layer and the steps of an inference from TensorRT's engine inspector, and from the files that
trtexec writes of them. Requires an engine with detailed profiling verbosity.

    {"Layers": [{"Name": ..., "LayerType": "gemm" | "CaskConvolution" | "kgen" | "Reformat" | ...,
                 "Inputs":  [{"Name": ..., "Format/Datatype": "Int8"}, ...],        10.x
                 "Inputs":  [{"Name": ..., "Format": ..., "DataType": "Int8"}, ...],  11.x
                 "Outputs": [...], "Weights": {"Type": "Int8", ...}, "TacticName": ...,
                 "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}, ...]}

(NVIDIA, TensorRT documentation, "Engine Inspector", and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x".)

A node of the ONNX graph is identified by the metadata of a layer, or else by the layer's name, in which fused nodes are joined
with " + ". A node is INT8 if every layer that may compute its product is INT8. A layer is INT8 by one of two criteria:

    operands    two inputs, or one input and the layer's weights, both INT8, in a kernel whose name shows no float arithmetic
    tactic      the name shows INT8 arithmetic (i8i32: products of int8 summed in int32), and no operand contradicts it

The second is needed where the layer lists one operand only, since constants are often left out; where a type reads
"N/A due to dynamic shapes"; and for every "fusion", whose inputs come in any order and may belong to other operations.
Generated kernels ("kgen") do not report the precision of a product: a node that only they mention is "unknown".

`trtexec --exportLayerInfo` writes the same JSON, `--exportProfile` the times of the layers, in the order of execution:

    [{"count": 100}, {"name": ..., "timeMs": ..., "averageMs": ..., "medianMs": ..., "percentage": ...}, ...]
"""

import math
import re
from typing import Any

from calib.errors import ArtifactError
from calib.json_reader import parse_json
from engines.layer_records import UNKNOWN, EngineEvidence, LayerEvidence, common_type, merge_evidence
from engines.plan_kernels import PlanStep, kind_of_generated, sum_known

_METADATA_NODE = re.compile(r"\[ONNX Layer: ([^\]\n]+)\]")
_PRODUCT = re.compile(r"gemm|conv|matrixmultiply|matmul|fusion|fully_?connected|corr", re.IGNORECASE)
_INT8_TACTIC = re.compile(r"i8i32|imma|(?<![a-z0-9])int8(?![a-z0-9])", re.IGNORECASE)
_FLOAT_TACTIC = re.compile(  # "sm80_xmma_gemm_f16f16_f16f32_f32", "ampere_h16816gemm", "ampere_fp16_s16816gemm_fp16"
    r"f16f|f32f32|bf16bf16|tf32|e4m3|e5m2|hmma|(?<![a-z0-9])[hs](?:gemm|884|1688|16816)", re.IGNORECASE
)
_TYPE_KEYS = ("DataType", "Datatype", "Data Type", "Format/Datatype", "Format/DataType", "Format")
_TYPES = (  # pattern -> type, the first match counts: "Row major linear FP16 format", "Half", "Thirty-two wide ... Int8 format"
    (re.compile(r"\bu?int8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bfp8\b|\bfloat8|e4m3", re.IGNORECASE), "fp8"),
    (re.compile(r"\bbf(loat)?16\b|\bbfloat\b", re.IGNORECASE), "bf16"),
    (re.compile(r"\bfp16\b|\bhalf\b|\bfloat16\b", re.IGNORECASE), "fp16"),
    (re.compile(r"\bfp32\b|\bfloat(32)?\b", re.IGNORECASE), "fp32"),
)
_BYTES = {"int8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
_NO_STEP = frozenset(("signal", "wait", "shape_call", "noop", "constant"))
_LAYER_KINDS = (  # pattern of the layer's type -> kind, the first match counts
    (re.compile(r"reformat|cast|quantize|transpose", re.IGNORECASE), "reformat"),
    (re.compile(r"mha|attention", re.IGNORECASE), "attention"),
    (_PRODUCT, "product"),
    (re.compile(r"pool|reduce|softmax|norm|topk", re.IGNORECASE), "reduction"),
    (re.compile(r"pointwise|elementwise|activation|unary|scale|pwgen", re.IGNORECASE), "pointwise"),
    (re.compile(r"pad", re.IGNORECASE), "pad"),
    (re.compile(r"shuffle|slice|concat|copy|memcpy|gather|fill", re.IGNORECASE), "copy"),
)
_GENERATED = re.compile(r"^(?:__myl_|(?=_gemm_mha))(\w+?)(?:_myl\w*|_0x[0-9a-f]+)?$")


def read_inspector(text: str, nodes: frozenset[str]) -> EngineEvidence:
    """Evidence for each of `nodes` that an engine's layer information (JSON) mentions.

    Raises ArtifactError if the text is not layer information, or contains layer names only (no detailed verbosity).
    """
    layers = inspected_layers(text)
    products: list[tuple[str, str, str]] = []
    mentioned: dict[str, str] = {}
    for layer in layers:
        kind = str(layer.get("LayerType", "?"))
        for node in _layer_nodes(layer, nodes):
            if _PRODUCT.search(kind):
                products.append((node, *_read_product(layer, kind)))
            else:
                mentioned.setdefault(node, f"computed in a layer of type {kind}, whose precision is not reported")
    evidence = merge_evidence(products)
    for node, source in mentioned.items():
        evidence.setdefault(node, LayerEvidence(UNKNOWN, source))
    reformats = sum("reformat" in str(layer.get("LayerType", "")).lower() for layer in layers)
    return EngineEvidence(evidence, kernels=len(layers), reformats=reformats, steps=inspected_steps(layers))


def inspected_steps(layers: list[dict[str, Any]]) -> tuple[PlanStep, ...]:
    """The steps of one inference in order: the layers that run a kernel."""
    return tuple(_step(layer) for layer in layers if str(layer.get("LayerType", "")).lower() not in _NO_STEP)


def read_profile(text: str) -> list[tuple[str, float]]:
    """(layer, mean time in ms) of every layer of `trtexec --exportProfile`, in order. Raises ArtifactError for other text."""
    try:
        entries = parse_json(f'{{"profile": {text}}}', "the profile of trtexec", strict=False)["profile"]
        times = [(str(entry["name"]), float(entry["averageMs"])) for entry in entries if "name" in entry]
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        raise _profile_error(text) from error
    if not times:
        raise _profile_error(text)
    return times


def _profile_error(text: str) -> ArtifactError:
    allowed = "the file of trtexec --exportProfile"
    return ArtifactError("not a profile of trtexec", found=f"{text[:80]!r}", allowed=allowed)


def _step(layer: dict[str, Any]) -> PlanStep:
    kind, name = str(layer.get("LayerType", "")), str(layer.get("Name", ""))
    tensors = [tensor for side in ("Inputs", "Outputs") for tensor in _tensors(layer, side)]
    sizes = {str(tensor.get("Name", i)): _tensor_bytes(tensor) for i, tensor in enumerate(tensors)}
    generated = _GENERATED.match(name)
    nodes = _METADATA_NODE.findall(str(layer.get("Metadata", ""))) or [part.strip() for part in name.split(" + ")]
    weights = layer.get("Weights")
    count = weights.get("Count") if isinstance(weights, dict) else None
    width = _BYTES.get(_parse_type(str(weights.get("Type")))) if isinstance(weights, dict) else None
    return PlanStep(
        kind=kind_of_generated(generated[1], len(_tensors(layer, "Inputs"))) if generated else _layer_kind(kind),
        name=generated[1] if generated else kind,
        nodes=tuple(dict.fromkeys(node for node in nodes if node)),
        weight_bytes=count * width if isinstance(count, int) and width else 0,
        activation_bytes=sum_known(sizes.values()),
        output_bytes=sum_known(_tensor_bytes(tensor) for tensor in _tensors(layer, "Outputs")),
    )


def _layer_kind(layer_type: str) -> str:
    return next((kind for pattern, kind in _LAYER_KINDS if pattern.search(layer_type)), "other")


def _tensors(layer: dict[str, Any], side: str) -> list[dict[str, Any]]:
    tensors = layer.get(side)
    return [tensor for tensor in tensors if isinstance(tensor, dict)] if isinstance(tensors, list) else []


def _tensor_bytes(tensor: dict[str, Any]) -> int | None:
    """Bytes of a layer's input or output, None if its type or a dim is not reported (-1: it depends on the batch)."""
    dims, width = tensor.get("Dimensions"), _BYTES.get(type_of_tensor(tensor))
    known = isinstance(dims, list) and all(isinstance(size, int) and size >= 0 for size in dims)
    return math.prod(dims) * width if known and isinstance(dims, list) and width else None


def inspected_layers(text: str) -> list[dict[str, Any]]:
    """Parse the layers of an inspector's JSON. Raises ArtifactError if it is invalid or contains layer names only."""
    try:
        layers = parse_json(text, "the engine inspector", strict=False)["Layers"]
    except (ArtifactError, KeyError) as error:
        raise ArtifactError("the output of the engine inspector cannot be parsed", found=f"{text[:80]!r}") from error
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise ArtifactError(
            "the engine reports only the names of its layers",
            allowed="an engine built with detailed profiling verbosity",
            next_command="build the engine with ufovit build",
        )
    return layers


def _layer_nodes(layer: dict[str, Any], nodes: frozenset[str]) -> list[str]:
    """The nodes that a layer computes: those in its metadata, else those in its name."""
    mentioned = _METADATA_NODE.findall(str(layer.get("Metadata", "")))
    parts = mentioned or [part.strip() for part in str(layer.get("Name", "")).split(" + ")]
    return [part for part in dict.fromkeys(parts) if part in nodes]


def _read_product(layer: dict[str, Any], kind: str) -> tuple[str, str]:
    """(type, source) of a layer that computes a matrix product or a convolution."""
    inputs, weights, tactic = layer.get("Inputs"), layer.get("Weights"), str(layer.get("TacticName", ""))
    types = [type_of_tensor(tensor) for tensor in inputs] if isinstance(inputs, list) else []
    operands = types[:2]
    if isinstance(weights, dict) and "Type" in weights:  # a convolution: a second input is a residual
        operands = [*types[:1], _parse_type(str(weights["Type"]))]
    source = f"{kind} on {' x '.join(operands) or 'nothing'}, tactic {tactic or 'not reported'}"
    return _product_type(operands, types, tactic, is_fusion="fusion" in kind.lower()), source


def _product_type(operands: list[str], types: list[str], tactic: str, *, is_fusion: bool) -> str:
    """The type of a product from its operands, the types of all inputs and the tactic's name; see the module's docstring."""
    float_tactic = _FLOAT_TACTIC.search(tactic) is not None
    int8_tactic = _INT8_TACTIC.search(tactic) is not None and not float_tactic
    if int8_tactic and ("int8" in types if is_fusion else {"int8"} == {*operands} - {UNKNOWN}):
        return "int8"
    common = common_type(operands)
    int8_proven = len(operands) == 2 and not float_tactic and not is_fusion
    return UNKNOWN if common == "int8" and not int8_proven else common


def type_of_tensor(tensor: Any) -> str:
    """The type of a layer's input or output, under the keys of TensorRT 10 or 11; "unknown" if it is not reported."""
    if not isinstance(tensor, dict):
        return UNKNOWN
    return next((kind for key in _TYPE_KEYS if (kind := _parse_type(str(tensor.get(key, "")))) != UNKNOWN), UNKNOWN)


def _parse_type(text: str) -> str:
    return next((name for pattern, name in _TYPES if pattern.search(text)), UNKNOWN)
