"""Backend TensorRT-RTX: an ONNX graph to one plan for several GPU generations, on any machine, with or without a GPU.

The plan holds one program for all compute capabilities; the kernels of its matrix products and convolutions are compiled for
the GPU at hand when the plan is first loaded there.
"""

from __future__ import annotations

import onnx

from calib.errors import InputError
from engines.backend import Advance, Backend, Built
from engines.layers import LayerEvidence, unique_names
from engines.rtx_plan import read_plan
from engines.spec import BatchRange, BuildSpec
from engines.trt_api import Builder, version


def build_plan(spec: BuildSpec, model: onnx.ModelProto, advance: Advance) -> Built:
    """Build a plan from a strongly typed graph with one image input, (batch, ...) with a symbolic or fixed batch.

    Raises BackendError when TensorRT-RTX refuses the graph, MissingError when it is not installed.
    """
    builder = Builder("rtx")
    network = builder.parse(model.SerializeToString(deterministic=True))
    config = builder.make_config()
    builder.set_compute_capabilities(config, spec.target.compute_capabilities)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = {t.name: profile_shapes(t.name, tuple(t.shape), spec.batch) for t in inputs}
    dynamic = {name: triple for name, triple in shapes.items() if triple is not None}
    if dynamic:
        builder.add_profile(config, dynamic)
    data = builder.build(network, config, advance)
    return Built(data, version("rtx"), tuple(builder.log))


def plan_evidence(data: bytes, model: onnx.ModelProto) -> dict[str, LayerEvidence]:
    """What the plan itself says of every layer; see `engines.rtx_plan`."""
    return read_plan(data, frozenset(unique_names(model)))


def profile_shapes(name: str, shape: tuple[int, ...], batch: BatchRange) -> tuple[tuple[int, ...], ...] | None:
    """(min, opt, max) shapes of an input, -1 being a symbolic dimension; None for an input of fixed shape."""
    if -1 not in shape:
        return None
    if shape[0] != -1 or -1 in shape[1:]:
        raise InputError(
            "only the batch may be symbolic", where=f"input {name}", found=shape, next_command="export with fixed image sizes"
        )
    return tuple((size, *shape[1:]) for size in (batch.min, batch.opt, batch.max))


BACKEND = Backend(build=build_plan, evidence=plan_evidence)
