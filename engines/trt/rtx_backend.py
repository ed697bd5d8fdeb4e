"""Build TensorRT-RTX plans: one plan of an ONNX graph for several compute capabilities, built with or without a GPU.

The plan contains one program for all compute capabilities; the kernels of its matrix products and convolutions are compiled
when the plan is first loaded on a GPU. So there is no timing cache, and the only builder option is the optimization level.
"""

from engines.backend_protocol import Advance, Backend, BackendResult
from engines.build_spec import BuildSpec
from engines.layer_records import EngineEvidence, GraphFacts
from engines.rtx_plan_text import read_plan
from engines.trt.api import Builder
from engines.trt.api import version as library_version
from engines.trt.network import define_network


def version() -> str:
    """Version of TensorRT-RTX. Raises MissingError if it is not installed."""
    return library_version("rtx")


def build_plan(spec: BuildSpec, graph: bytes, advance: Advance) -> BackendResult:
    """Build a plan from a strongly typed graph with one image input, (batch, ...) with a symbolic or fixed batch.

    Raises BackendError if TensorRT-RTX rejects the graph, MissingError if it is not installed, UsageError for other builder
    options than the optimization level.
    """
    spec.refuse_options("TensorRT-RTX", "optimization_level")
    builder = Builder("rtx")
    network, config = define_network(builder, graph, spec)
    builder.set_compute_capabilities(config, spec.target.compute_capabilities)
    data = builder.build(network, config, advance)
    return BackendResult(data, version(), spec.target.compute_capabilities)


def plan_evidence(data: bytes, _graph: bytes, facts: GraphFacts) -> EngineEvidence:
    """Read the precision of every layer from the plan; see `engines.rtx_plan_text`."""
    return read_plan(data, frozenset(facts.traceable))


BACKEND = Backend(build=build_plan, evidence=plan_evidence)
