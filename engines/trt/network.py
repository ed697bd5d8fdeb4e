"""From a typed ONNX graph to TensorRT's network and configuration: the one path of TensorRT and TensorRT-RTX."""

from __future__ import annotations

from typing import Any

from calib.errors import InputError
from engines.build_spec import BatchRange, BuildSpec
from engines.trt.api import Builder


def define(builder: Builder, graph: bytes, spec: BuildSpec) -> tuple[Any, Any]:
    """The strongly typed network of a graph and a configuration with its batch sizes.

    Raises BackendError naming the nodes that the parser refuses, InputError for a symbolic dimension other than the batch.
    """
    network = builder.parse(graph)
    config = builder.make_config(spec.options)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = {t.name: profile_shapes(t.name, tuple(t.shape), spec.batch) for t in inputs}
    dynamic = {name: triple for name, triple in shapes.items() if triple is not None}
    if dynamic:
        builder.add_profile(config, dynamic)
    return network, config


def profile_shapes(name: str, shape: tuple[int, ...], batch: BatchRange) -> tuple[tuple[int, ...], ...] | None:
    """(min, opt, max) shapes of an input, -1 being a symbolic dimension; None for an input of fixed shape."""
    if -1 not in shape:
        return None
    if shape[0] != -1 or -1 in shape[1:]:
        raise InputError(
            "only the batch may be symbolic", where=f"input {name}", found=shape, next_command="export with fixed image sizes"
        )
    return tuple((size, *shape[1:]) for size in (batch.min, batch.opt, batch.max))
