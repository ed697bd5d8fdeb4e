"""Every tensor of a UFO-ViT is bounded, for any image. Oracle: ONNX Runtime's tensors on images made to break the bounds.

Hostile images, and gradient ascent on the pixels within their interval, through the torch network.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from attention_graphs import along_rows, hostile_images, redrawn
from bound_observations import exceeded

from edge.stability.bounds import Bounds, bound_tensors
from edge.stability.finders.xnorm import find_sites
from edge.stability.input_bounds import bound_site
from edge.stability.site import Probe
from edge.stability.trace_layers import trace_sites

pytestmark = pytest.mark.slow

LOW, HIGH = -2.2, 2.7


def reshaped(model):
    """The model without the shapes that were inferred before its axis was changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy


def tightened(bounds, factor):
    values = {
        name: replace(v, low=v.low / factor, high=v.high / factor, lengths=(), ball=None) for name, v in bounds.values.items()
    }
    return Bounds(values, {})


@pytest.mark.parametrize("graph", ["contraction", "last", "redrawn"])
def test_no_image_exceeds_the_bounds_of_any_tensor(tiny_graph, graph):
    model = {
        "contraction": lambda: tiny_graph,
        "last": lambda: reshaped(along_rows(tiny_graph)),
        "redrawn": lambda: redrawn(tiny_graph, 1),
    }[graph]()
    images = hostile_images(32, np.random.default_rng(0))
    bounds = bound_tensors(model, images.min(), images.max())
    assert [name for name in bounds if bounds.largest(name) is None] == []
    assert exceeded(bounds, model, [images]) == set()
    assert exceeded(tightened(bounds, 2), model, [images]), "negative control"


def test_only_the_stem_depends_on_the_pixels(tiny_graph):
    """Every branch starts with a LayerNorm: wider pixels raise the residual stream by what the stem adds, and no branch."""
    narrow, wide = bound_tensors(tiny_graph, LOW, HIGH), bound_tensors(tiny_graph, 10 * LOW, 10 * HIGH)
    changed = {name for name in narrow if wide.largest(name) > 1.01 * narrow.largest(name)}
    assert {"image", "stem.0/Conv_output", "blocks.1/Add_2_output", "cls_blocks.0/Concat_output"} <= changed
    assert not [name for name in changed if "attn" in name or "ffn" in name or "lpi" in name or name == "logits"]


@pytest.mark.parametrize("kv_axis", ["contraction", "last"])
def test_what_is_certified_of_an_xnorm_is_found_again(tiny_graph, kv_axis):
    """The rules of the operators come to the bounds that were derived of XNorms by hand."""
    model = tiny_graph if kv_axis == "contraction" else reshaped(along_rows(tiny_graph))
    bounds, sites = bound_tensors(model, LOW, HIGH), find_sites(model)
    for site, certified in zip(sites, map(bound_site, sites, trace_sites(model, sites)), strict=True):
        assert bounds.largest(site.argument) == pytest.approx(certified.argument_max.max(), rel=1e-3)
        squares = bounds.of(Probe("sum of squares", (site.argument,), (site.axis,)))
        assert squares == pytest.approx(certified.sum_max.max(), rel=2e-3)


def test_gradient_ascent_on_the_pixels_stays_below_the_bounds(make_network, tiny_graph, tiny_images):
    import torch

    network, bounds = make_network(0), bound_tensors(tiny_graph, LOW, HIGH)
    modules = dict(network.named_modules())
    targets = {
        name: modules[name] for name in ("stem.9", "blocks.0.ffn.2", "blocks.1.lpi.conv2", "blocks.1", "cls_blocks.1", "head")
    }
    ratios = {}
    for name, module in targets.items():
        seen = []
        hook = module.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output))
        pixels = torch.from_numpy(tiny_images[:4].clip(LOW, HIGH)).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=0.2)
        for _ in range(20):
            seen.clear()
            optimizer.zero_grad()
            network(pixels)
            (-seen[0].abs().flatten(1).amax(1).sum()).backward()
            optimizer.step()
            pixels.data.clamp_(LOW, HIGH)
        hook.remove()
        assert exceeded(bounds, tiny_graph, [pixels.detach().numpy()]) == set()
        tensor = {"blocks.1": "blocks.1/Add_2_output", "cls_blocks.1": "cls_blocks.1/Add_1_output", "head": "logits"}.get(name)
        if tensor:
            ratios[name] = bounds.largest(tensor) / float(seen[0].detach().abs().max())
    assert ratios["head"] < 3, "not vacuous: ascent comes within a factor of the bound on the logits"
