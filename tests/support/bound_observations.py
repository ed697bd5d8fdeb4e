"""What is observed of a network's tensors, compared with the bounds that are stated of them."""

import numpy as np

from calib.ort_session import TappedGraph
from edge.stability.site import Probe


def exceeded(bounds, model, images):
    """(tensor, what) of everything that was observed beyond its bound."""
    source = model.graph.input[0].name
    run, wrong = TappedGraph(model, [name for name in bounds if name != source]), set()
    for image in images:
        for name, array in run(image).items():
            value, x = bounds.values[name], array.astype(np.float64)
            assert value.shape[1:] == x.shape[1:], name
            if (x < value.low).any() or (x > value.high).any():
                wrong.add((name, "interval"))
            for fact in value.lengths:
                if ((np.abs(x) ** fact.order).sum(axis=fact.axes, keepdims=True) > fact.bound**fact.order).any():
                    wrong.add((name, f"length {fact.order}"))
            wrong |= {(name, probe.quantity) for probe in probes(name, x.ndim) if beyond(bounds.of(probe), measured(probe, x))}
    return wrong


def beyond(bound, found):
    return bound is not None and found > bound


def probes(name, rank):
    quantities = ("sum", "sum of squares", "deviation", "squared deviation", "sum of squared deviations")
    axes = [(-1,), tuple(range(-rank + 1, 0)), *([(-2,)] if rank > 2 else [])]  # not the batch
    return [Probe("value", (name,)), Probe("square", (name,)), *(Probe(q, (name,), a) for q in quantities for a in axes if a)]


def measured(probe, x):
    centred = x - x.mean(axis=probe.axes, keepdims=True) if probe.axes else x
    return {
        "value": lambda: np.abs(x),
        "square": lambda: x**2,
        "sum": lambda: np.abs(x).sum(axis=probe.axes),
        "sum of squares": lambda: (x**2).sum(axis=probe.axes),
        "deviation": lambda: np.abs(centred),
        "squared deviation": lambda: centred**2,
        "sum of squared deviations": lambda: (centred**2).sum(axis=probe.axes),
    }[probe.quantity]().max()
