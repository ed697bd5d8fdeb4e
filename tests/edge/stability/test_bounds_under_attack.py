"""Certified bounds of the whole network against images made to break them. Oracle: ONNX Runtime's own tensors.

Noise, constants, saturated and huge pixels, and gradient ascent on the pixels, site by site, through the torch network.
"""

from dataclasses import replace

import numpy as np
import pytest
from attention_graphs import along_rows, hostile_images, redrawn

from edge.stability.finders.xnorm import find_sites
from edge.stability.input_bounds import bound_site
from edge.stability.measure_ranges import measure
from edge.stability.trace_layers import trace_sites

pytestmark = pytest.mark.slow


def certified(graph):
    sites = find_sites(graph)
    return list(map(bound_site, sites, trace_sites(graph, sites)))


def exceeded(graph, bounds, images):
    """(site, quantity) of everything observed above its bound."""
    sites = find_sites(graph)
    observed = measure(graph, sites, [images]).ranges
    found = []
    for site, seen, sure in zip(sites, observed, bounds, strict=True):
        names = ("argument_max", "sum_max", "partial_max", "factor_max")
        found += [(site.name, name) for name in names if (getattr(seen, name) > getattr(sure, name)).any()]
    return found


def tightness(graph, bounds, images):
    """Smallest ratio of the bound on sum a^2 to what was seen, over heads, per site."""
    observed = measure(graph, find_sites(graph), [images]).ranges
    return np.array([(sure.sum_max / seen.sum_max).min() for seen, sure in zip(observed, bounds, strict=True)])


@pytest.fixture(scope="module")
def large_graph(make_network):
    """64 px: 16 tokens."""
    from edge.model.export import to_onnx
    from edge.model.export_foldings import fold

    return to_onnx(fold(make_network(0, image_size=64)))


@pytest.mark.parametrize("kv_axis", ["contraction", "last"])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_image_exceeds_the_bounds(tiny_graph, large_graph, kv_axis, size, seed):
    graph = tiny_graph if size == 32 else large_graph
    graph = graph if kv_axis == "contraction" else along_rows(graph)
    graph = redrawn(graph, seed) if seed else graph
    bounds, images = certified(graph), hostile_images(size, np.random.default_rng(seed))
    assert all(bound is not None for bound in bounds)
    assert exceeded(graph, bounds, images) == []
    lowered = [replace(b, argument_max=b.argument_max / 50, sum_max=b.sum_max / 2500) for b in bounds]
    assert exceeded(graph, lowered, images), "the comparison sees a bound that is too low"


def ascended(network, images, site, operand, steps=25):
    """Images moved so that sum a^2 and max |a| of one XNorm grow."""
    import torch

    seen = []
    module = dict(network.named_modules())[site]
    hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    pixels = torch.from_numpy(images.copy()).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=0.3)
    for _ in range(steps):
        seen.clear()
        optimizer.zero_grad()
        network(pixels)
        a = seen[0]
        target = (a**2).sum(module.dim).amax((1, 2)) + a.abs().amax((1, 2, 3)) ** 2
        (-torch.log(target).sum()).backward()
        optimizer.step()
    hook.remove()
    return pixels.detach().numpy()


@pytest.mark.parametrize("kv_axis", ["contraction", "last"])
def test_gradient_ascent_on_the_pixels_stays_below_the_bounds(make_network, tiny_graph, tiny_images, kv_axis):
    network = make_network(0, kv_axis=kv_axis)
    graph = tiny_graph if kv_axis == "contraction" else along_rows(tiny_graph)
    bounds, sites = certified(graph), find_sites(graph)
    start = tiny_images[:4]
    before = tightness(graph, bounds, start)
    after = np.empty(len(sites))
    for i, site in enumerate(sites):
        images = ascended(network, start, site.name.removesuffix("/ReduceL2"), site.operand)
        assert exceeded(graph, bounds, images) == []
        after[i] = tightness(graph, bounds, images)[i]
    assert (after < before / 1.5).mean() > 0.5, "the ascent ascends"
    q = np.array([site.operand == "q" for site in sites])
    assert after[q].min() < 3, "not vacuous: images come within a factor of it"
    assert after[~q].min() < 12


def test_simplification_changes_neither_sites_nor_bounds(tiny_graph, tiny_images):
    from edge.model.export import simplify

    simplified, record = simplify(tiny_graph, tiny_images)
    assert record.used, record.reason
    assert find_sites(simplified, expected=8, kv_axis=-2) == find_sites(tiny_graph)
    for one, other in zip(certified(tiny_graph), certified(simplified), strict=True):
        for name in ("argument_max", "sum_max", "partial_max", "factor_max"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
