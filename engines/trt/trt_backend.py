"""Backend TensorRT, 10.3 to 11.4: a strongly typed ONNX graph to an engine for the GPU of this machine, Jetson or desktop.

An engine runs where it was built: on this kind of GPU with this release of TensorRT, unless the build asked for more
(`BuilderOptions`). Kernels are chosen by timing them, so that two builds may differ; with a pinned timing cache nothing is
timed anew. The receipt is the engine inspector's (`engines.engine_inspector`).
"""

from __future__ import annotations

from dataclasses import replace

from calib.errors import MissingError
from engines import hardware
from engines.backend_protocol import Advance, Backend, Built
from engines.build_spec import BuildSpec
from engines.engine_inspector import read_inspector
from engines.layer_records import EngineEvidence, GraphFacts
from engines.trt.api import Builder, Runtime
from engines.trt.api import version as library_version
from engines.trt.network import define
from engines.trt.timing_cache import check_pin

_NO_GPU = "TensorRT builds on the GPU that the engine is for, and this machine has none"


def version() -> str:
    """Version of TensorRT. Raises MissingError when it is not installed, or when there is no GPU to build on."""
    installed = library_version("trt")
    if not hardware.jetson_module() and not hardware.gpus():
        raise MissingError(_NO_GPU, found=installed)
    return installed


def build_engine(spec: BuildSpec, graph: bytes, advance: Advance) -> Built:
    """Build an engine for this machine's GPU from a strongly typed graph with one image input, (batch, ...).

    Raises BackendError when TensorRT refuses the graph, or when a pinned timing cache does not cover the build; MissingError
    without TensorRT or without a GPU.
    """
    capability, device = this_gpu(spec)
    options = spec.options
    if options.workspace_bytes is None:
        options = replace(options, workspace_bytes=spec.target.workspace_bytes)
    builder = Builder("trt")
    network, config = define(builder, graph, replace(spec, options=options))
    if options.timing_cache is not None:
        builder.use_timing_cache(config, options.timing_cache, pinned=options.pin_timing_cache)
    data = builder.build(network, config, advance)
    measured = builder.timing_cache(config) if options.timing_cache is not None else None
    check_pin(options, measured, enforced=builder.refuses_new_timings)
    cache = options.timing_cache if options.pin_timing_cache else measured
    return Built(data, library_version("trt"), (capability,), device, cache, tuple(builder.log))


def this_gpu(spec: BuildSpec) -> tuple[str, str]:
    """Compute capability and name of the GPU that an engine is built for. Raises MissingError when it is not this machine's."""
    if spec.target.jetson:  # its driver need not answer; the module decides
        module = hardware.jetson_module()
        if spec.target.jetson not in module:
            raise MissingError(
                f"an engine for {spec.target.name} is built on the {spec.target.jetson} itself", found=module or None
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
    """What the engine inspector says of every layer, once the engine is loaded."""
    runtime = Runtime("trt")
    engine = runtime.deserialize(data, version_compatible=True)  # it was built a moment ago, so its own code may run
    return read_inspector(runtime.inspect(engine), frozenset(facts.traceable))


BACKEND = Backend(build=build_engine, evidence=engine_evidence)
