"""Build an engine and its precision receipt from an ONNX graph."""

from collections.abc import Callable
from dataclasses import dataclass

from calib.errors import GraphError
from engines.backend_protocol import Advance, BackendResult
from engines.backends import load_backend
from engines.build_spec import BatchRange, BuildSpec
from engines.layer_records import GraphFacts, Layer, TensorInfo
from engines.precision_receipt import Receipt, check_receipt, make_receipt

_FLOAT_MAJORITY = 0.5
"""A float graph must request the precision for more than this share of its MACs; the rest are islands of another type."""


@dataclass(frozen=True, kw_only=True)
class BuiltEngine(BackendResult):
    """The output of the backend, a key of BACKENDS; the receipt read from it; input and outputs of the graph.

    `batch` holds the batch sizes that the engine takes: those of the graph where it has a fixed batch.
    """

    receipt: Receipt
    backend: str
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    batch: BatchRange


def build(
    spec: BuildSpec,
    progress: Advance = lambda _share: None,
    built: Callable[[bytes], BackendResult | None] = lambda _graph: None,
) -> BuiltEngine:
    """Build an engine in memory and check its receipt against the INT8 floor of the spec. Writes no files.

    `built` returns what the backend made of a graph for this spec earlier, None where it has to build.

    Raises:
        GraphError: the graph is missing, invalid, or does not request the precision of the spec; a BackendError that holds the
            library's log if the backend rejects it.
        UsageError: the backend is unknown, or does not support the precision or an option.
        VerdictError: less than `spec.floor` of the MACs runs in INT8.
        MissingError: the backend's library is not installed.
    """
    from engines.layer_requests import load_graph

    return build_graph(spec, *load_graph(spec.onnx), progress, built)


def build_graph(
    spec: BuildSpec,
    graph: bytes,
    facts: GraphFacts,
    progress: Advance = lambda _share: None,
    built: Callable[[bytes], BackendResult | None] = lambda _graph: None,
) -> BuiltEngine:
    """Like `build`, from the bytes and facts of a graph; does not import onnx unless the backend does."""
    backend = load_backend(spec.target.backend)
    _check_request(spec, facts.layers)
    result = built(graph) or backend.build(spec, graph, progress)
    receipt = make_receipt(facts.layers, backend.evidence(result.data, graph, facts), spec.precision)
    check_receipt(receipt, spec.floor)
    fixed = next(iter(facts.input.shape), -1)
    return BuiltEngine(
        **vars(result),
        receipt=receipt,
        backend=spec.target.backend,
        input=facts.input,
        outputs=facts.outputs,
        batch=spec.batch if fixed < 1 else BatchRange(fixed, fixed, fixed),
    )


def _check_request(spec: BuildSpec, layers: tuple[Layer, ...]) -> None:
    """Refuse a graph that requests another precision: no backend can correct that."""
    requested = sum(layer.macs for layer in layers if layer.requested == spec.precision)
    share = requested / max(sum(layer.macs for layer in layers), 1)
    expected = {"int8": "a graph with Q/DQ", "fp16": "a typed FP16 graph", "fp32": "a float FP32 graph"}[spec.precision]
    if share <= (0 if spec.precision == "int8" else _FLOAT_MAJORITY):
        precisions = ", ".join(sorted({layer.requested for layer in layers})) or "none: the graph has no Conv, MatMul or Gemm"
        found = f"requested precisions: {precisions}"
        raise GraphError(f"the graph does not request {spec.precision}", where=spec.onnx, found=found, allowed=expected)
