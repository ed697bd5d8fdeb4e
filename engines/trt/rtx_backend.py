"""Backend TensorRT-RTX: an ONNX graph to one plan for several GPU generations, on any machine, with or without a GPU.

The plan holds one program for all compute capabilities; the kernels of its matrix products and convolutions are compiled for
the GPU at hand when the plan is first loaded there. So there is no timing cache, and no builder option but the level.
"""

from __future__ import annotations

from engines.backend_protocol import Advance, Backend, Built
from engines.build_spec import BuildSpec
from engines.layer_records import EngineEvidence, GraphFacts
from engines.rtx_plan_text import read_plan
from engines.trt.api import Builder
from engines.trt.api import version as library_version
from engines.trt.network import define


def version() -> str:
    """Version of TensorRT-RTX; raises MissingError when it is not installed."""
    return library_version("rtx")


def build_plan(spec: BuildSpec, graph: bytes, advance: Advance) -> Built:
    """Build a plan from a strongly typed graph with one image input, (batch, ...) with a symbolic or fixed batch.

    Raises BackendError when TensorRT-RTX refuses the graph, MissingError when it is not installed.
    """
    spec.refuse_options("TensorRT-RTX", "optimization_level")
    builder = Builder("rtx")
    network, config = define(builder, graph, spec)
    builder.set_compute_capabilities(config, spec.target.compute_capabilities)
    data = builder.build(network, config, advance)
    return Built(data, version(), spec.target.compute_capabilities, log=tuple(builder.log))


def plan_evidence(data: bytes, _graph: bytes, facts: GraphFacts) -> EngineEvidence:
    """What the plan itself says of every layer; see `engines.rtx_plan_text`."""
    return read_plan(data, frozenset(facts.traceable))


BACKEND = Backend(build=build_plan, evidence=plan_evidence)
