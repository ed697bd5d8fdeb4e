"""Build TensorRT engines, 10.3 to 11.4, for the GPU of this machine, Jetson or desktop, from a strongly typed ONNX graph.

An engine runs on the GPU model and TensorRT release that it was built with, unless `BuilderOptions` asks for compatibility.
TensorRT selects kernels by timing them, so two builds may differ; with a pinned timing cache no kernel is timed. The receipt is
read from the engine inspector (`engines.engine_inspector`).
"""

from dataclasses import replace

from calib.errors import MissingError
from engines import hardware
from engines.backend_protocol import Advance, Backend, BackendResult
from engines.build_spec import BuildSpec
from engines.engine_inspector import read_inspector
from engines.layer_records import EngineEvidence, GraphFacts
from engines.trt.api import Builder, Runtime
from engines.trt.api import version as library_version
from engines.trt.network import define_network
from engines.trt.timing_cache import check_pin

_NO_GPU = "TensorRT builds on the GPU that the engine is for, and this machine has no GPU"


def version() -> str:
    """Version of TensorRT. Raises MissingError if it is not installed, or if there is no GPU to build on."""
    installed = library_version("trt")
    if not hardware.jetson_module() and not hardware.gpus():
        raise MissingError(_NO_GPU, found=installed)
    return installed


def build_engine(spec: BuildSpec, graph: bytes, advance: Advance) -> BackendResult:
    """Build an engine for this machine's GPU from a strongly typed graph with one image input, (batch, ...).

    Raises BackendError if TensorRT rejects the graph, or a pinned timing cache does not cover the build; MissingError without
    TensorRT or without a GPU.
    """
    capability, device = this_gpu(spec)
    options = spec.options
    if options.workspace_bytes is None:
        options = replace(options, workspace_bytes=spec.target.workspace_bytes)
    builder = Builder("trt")
    network, config = define_network(builder, graph, replace(spec, options=options))
    if options.timing_cache is not None:
        builder.use_timing_cache(config, options.timing_cache, pinned=options.pin_timing_cache)
    data = builder.build(network, config, advance)
    measured = builder.timing_cache(config) if options.timing_cache is not None else None
    check_pin(options, measured, enforced=builder.refuses_new_timings)
    cache = options.timing_cache if options.pin_timing_cache else measured
    return BackendResult(data, library_version("trt"), (capability,), device, cache)


def this_gpu(spec: BuildSpec) -> tuple[str, str]:
    """Compute capability and name of the GPU to build for. Raises MissingError if this machine does not have it."""
    if spec.target.jetson:  # identified by its module; the driver may not respond
        module = hardware.jetson_module()
        if spec.target.jetson not in module:
            raise MissingError(
                f"an engine for {spec.target.name} must be built on the {spec.target.jetson} itself", found=module or None
            )
        return spec.target.compute_capabilities[0], module
    gpus = hardware.gpus()
    if not gpus:
        raise MissingError(
            _NO_GPU,
            next_command="ufovit build MODEL PRECISION --target rtx, or ufovit bundle for another device",
        )
    return gpus[0].compute_capability, gpus[0].name


def engine_evidence(data: bytes, _graph: bytes, facts: GraphFacts) -> EngineEvidence:
    """Load the engine and read the precision of every layer from the engine inspector."""
    runtime = Runtime("trt")
    engine = runtime.deserialize(data, version_compatible=True)  # just built here, so it is trusted
    return read_inspector(runtime.inspect(engine), frozenset(facts.traceable))


BACKEND = Backend(build=build_engine, evidence=engine_evidence)
