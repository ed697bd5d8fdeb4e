"""Define the TensorRT network and builder configuration of a typed ONNX graph, for TensorRT and TensorRT-RTX."""

from typing import Any

from calib.errors import GraphError
from engines.build_spec import BatchRange, BuildSpec
from engines.trt.api import Builder


def define_network(builder: Builder, graph: bytes, spec: BuildSpec) -> tuple[Any, Any]:
    """Parse a graph to a strongly typed network and create its configuration, with a profile of its batch sizes.

    Raises BackendError naming the nodes that the parser rejects, GraphError for a symbolic dimension other than the batch.
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
    """(min, opt, max) shapes of an input, where -1 is a symbolic dimension; None for a fixed shape."""
    if -1 not in shape:
        return None
    if shape[0] != -1 or -1 in shape[1:]:
        raise GraphError(
            "only the batch may be symbolic", where=f"input {name}", found=shape, next_command="export with fixed image sizes"
        )
    return tuple((size, *shape[1:]) for size in (batch.min, batch.opt, batch.max))
