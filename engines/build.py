"""Graph in, engine and receipt out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calib.errors import InputError
from engines.backend_protocol import Built
from engines.backends import load_backend
from engines.precision_receipt import Receipt, check_receipt, make_receipt

if TYPE_CHECKING:
    from engines.backend_protocol import Advance
    from engines.build_spec import BuildSpec
    from engines.layer_records import GraphFacts, Layer, TensorInfo


_FLOAT_MAJORITY = 0.5
"""Share of MACs above which a float graph is of a type; islands of another type are the rest."""


@dataclass(frozen=True, kw_only=True)
class BuiltEngine(Built):
    """A finished engine: what its backend handed back, and what was read from it.

    Attributes:
        receipt: read from `data`.
        backend: key of BACKENDS.
        input: the image; a symbolic batch is -1.
        output: the logits; a symbolic batch is -1.
        seconds: duration of the build, receipt included.
    """

    receipt: Receipt
    backend: str
    input: TensorInfo
    output: TensorInfo
    seconds: float


def build(spec: BuildSpec, progress: Advance = lambda _share: None) -> BuiltEngine:
    """Build an engine in memory and hold its receipt against the spec. Writes nothing.

    Raises:
        InputError: a graph that is missing, broken, or asks for nothing of the precision; an unknown backend.
        BackendError: the backend refuses the graph (an InputError that holds the library's log).
        VerdictError: less than `spec.floor` of the MACs runs in INT8.
        MissingError: the backend's library is not installed.
    """
    from engines.layer_requests import load_graph

    return build_graph(spec, *load_graph(spec.onnx), progress)


def build_graph(spec: BuildSpec, graph: bytes, facts: GraphFacts, progress: Advance = lambda _share: None) -> BuiltEngine:
    """`build` from the bytes of a graph and what is known of it: needs no onnx where the backend needs none."""
    backend = load_backend(spec.target.backend)
    _check_request(spec, facts.layers)
    start = time.monotonic()
    built = backend.build(spec, graph, progress)
    receipt = make_receipt(facts.layers, backend.evidence(built.data, graph, facts), spec.precision)
    check_receipt(receipt, spec.floor)
    return BuiltEngine(
        **vars(built),
        receipt=receipt,
        backend=spec.target.backend,
        input=facts.input,
        output=facts.output,
        seconds=time.monotonic() - start,
    )


def _check_request(spec: BuildSpec, layers: tuple[Layer, ...]) -> None:
    """Refuse a graph that asks for another precision altogether: no backend could make it good."""
    macs = dict.fromkeys((layer.requested for layer in layers), 0)
    for layer in layers:
        macs[layer.requested] += layer.macs
    share = macs.get(spec.precision, 0) / max(sum(macs.values()), 1)
    hint = {"int8": "a graph with Q/DQ", "fp16": "a typed FP16 graph", "fp32": "a float FP32 graph"}[spec.precision]
    if share <= (0 if spec.precision == "int8" else _FLOAT_MAJORITY):
        found = f"layers in {', '.join(sorted(macs)) or 'no precision: nothing in it multiplies'}"
        raise InputError(f"the graph does not ask for {spec.precision}", where=spec.onnx, found=found, allowed=hint)
