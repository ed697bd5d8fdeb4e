"""Count the steps (kernel launches) of an INT8 engine while its float layers are chosen: type the graph, build, read the plan.

The backends of COUNTING build without a GPU, in seconds, and their plans tell the steps. The engine of a graph that was counted
is not built again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calib.errors import GraphError
from calib.files import sha256_bytes
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.steps.type_fp16 import type_as_certified
from edge.pipeline.workspace import Workspace
from engines.backend_protocol import BackendResult
from engines.backends import load_backend
from engines.build_folder.file_names import CERTIFICATE, TYPED
from engines.build_spec import BuildSpec
from engines.hardware import versions
from engines.layer_records import EngineEvidence, GraphFacts

if TYPE_CHECKING:
    from onnx import ModelProto

    from edge.progress import Advance
    from engines.build_spec import Precision

COUNTING = ("trt_rtx",)
"""Backends that build without a GPU and report steps."""


@dataclass(frozen=True)
class TypedEngine:
    """An engine built from a float or Q/DQ graph that was typed for it: the typed graph, its facts, and what the plan shows."""

    graph: bytes
    facts: GraphFacts
    result: BackendResult
    evidence: EngineEvidence


@dataclass(frozen=True)
class StepCounter:
    """Counts the steps of Q/DQ graphs built as a request asks for.

    Attributes:
        say: called with a line for the user after each build.
        built: SHA-256 of a typed graph -> its engine.
    """

    request: BuildRequest
    inputs: BuildInputs
    say: Callable[[str], None]
    built: dict[str, BackendResult] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether the target's engines are built on any machine and report steps."""
        return self.request.target.backend in COUNTING

    def reads(self, workspace: Workspace) -> dict[str, Any]:
        """What decides the steps, for the record of the step that counts them; empty where none are counted."""
        request = self.request
        if not self.counts:
            return {}
        return {
            "certificate": workspace.sha256(CERTIFICATE),
            "target": request.target.name,
            "batch": [request.batch.min, request.batch.opt, request.batch.max],
            "builder": request.builder.as_json(request.target, request.out),
            "versions": versions("tensorrt_rtx"),
        }

    def __call__(self, quantized: ModelProto) -> int | None:
        """Steps of one inference; None where the plan does not tell them, or the graph is refused.

        A refusal is left to the engine step: the graph may not be the one that is chosen.
        """
        started = time.monotonic()
        try:
            engine = self.build(quantized, self.request.precision, TYPED)
        except GraphError:
            return None
        steps = len(engine.evidence.steps)
        self.built[sha256_bytes(engine.graph)] = engine.result
        self.say(f"  calibrate: {steps} steps in the engine of a placement, built in {time.monotonic() - started:.0f} s")
        return steps or None

    def build(self, model: ModelProto, precision: Precision, file: str, advance: Advance = lambda _share: None) -> TypedEngine:
        """Type a graph as certified and build its engine; messages name it `file`. Raises GraphError if refused."""
        from engines.layer_requests import graph_facts

        request = self.request
        options = request.builder.options(request.target, request.out)
        spec = BuildSpec(request.out / file, request.target, precision, request.batch, options=options)
        backend = load_backend(request.target.backend)
        typed = type_as_certified(model, request, self.inputs.network)
        graph = typed.SerializeToString(deterministic=True)
        result, facts = backend.build(spec, graph, advance), graph_facts(typed)
        return TypedEngine(graph, facts, result, backend.evidence(result.data, graph, facts))

    def take(self, graph: bytes) -> BackendResult | None:
        """The engine of a typed graph that was counted, None for another graph; forgets all engines."""
        found = self.built.get(sha256_bytes(graph))
        self.built.clear()
        return found
