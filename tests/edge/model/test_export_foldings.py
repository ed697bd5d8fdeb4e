"""The folded network is the same function as the unfolded one, in float64, and nothing but an exact folding is."""

import copy

import pytest
import torch
from torch import nn

from calib.metrics import sqnr_db
from edge.model import export_foldings as folding
from edge.model.blocks import LayerScale
from edge.model.export_foldings import fold
from edge.model.xnorm import XNorm

ROUNDED_ONCE_DB = 125.0
"""Folded weights are rounded once to float32 (24 bits, about 150 dB each); a few dozen layers may add up."""


def logits(network, images):
    with torch.no_grad():
        return network.double()(torch.from_numpy(images).double()).numpy()


def agreement(network, folded, images):
    return sqnr_db(logits(copy.deepcopy(network), images), logits(folded, images))


@pytest.mark.parametrize("kv_axis", ["contraction", "last"])
def test_folded_network_is_the_same_function(make_network, tiny_images, kv_axis):
    network = make_network(kv_axis=kv_axis)
    assert agreement(network, fold(network), tiny_images) > ROUNDED_ONCE_DB


def test_what_is_folded_is_gone(make_network):
    network = make_network()
    folded = fold(network)
    assert not [n for n, _ in folded.named_parameters() if n.endswith(("gamma", "gain"))]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.stem)
    assert all(isinstance(b.lpi.norm, nn.BatchNorm2d) for b in folded.blocks), "it stands before a zero-padded convolution"
    assert not folded.training
    parameters = dict(network.named_parameters())
    assert len([n for n in parameters if n.endswith("gamma")]) == 2 * 4
    assert len([n for n in parameters if n.endswith("gain")]) == 2 * 3 + 2 * 2


def test_the_argument_is_left_as_it_was(make_network, tiny_images):
    network = make_network().train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    fold(network)
    assert network.training
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("folding_of", ["gammas", "layer scale", "stem"])
def test_each_folding_alone(make_network, tiny_images, folding_of):
    network = make_network()
    folded = copy.deepcopy(network)
    with torch.no_grad():
        if folding_of == "gammas":
            for block in (*folded.blocks, *folded.cls_blocks):
                folding.fold_gammas(block.attn)
        elif folding_of == "layer scale":
            for block in folded.blocks:
                folding.fold_layer_scale(block.scale2, block.lpi.conv2)
        else:
            folding.fold_stem(folded.stem)
    assert agreement(network, folded, tiny_images) > ROUNDED_ONCE_DB
    assert agreement(network, copy.deepcopy(network), tiny_images) == float("inf")


def swap_heads(network):
    gamma = network.blocks[0].attn.xnorm_q.gamma
    gamma.copy_(gamma.flip(1))


def drop_gammas(network):
    for module in network.modules():
        if isinstance(module, XNorm) and module.gamma is not None:
            module.gamma.fill_(1)


def drop_one_scale(network):
    network.cls_blocks[1].scale2.gain.fill_(1)


def drop_scales(network):
    for module in network.modules():
        if isinstance(module, LayerScale):
            module.gain.fill_(1)


def forget_stem_mean(network):
    network.stem[1].running_mean.zero_()


def forget_stem_variance(network):
    network.stem[4].running_var.fill_(1)


def forget_eps(network):
    network.stem[1].eps = 0.0


@pytest.mark.parametrize(
    "wrong", [swap_heads, drop_gammas, drop_one_scale, drop_scales, forget_stem_mean, forget_stem_variance, forget_eps]
)
def test_a_wrong_folding_shows(make_network, tiny_images, wrong):
    """Negative control: a folding that does something else to the smallest part is told apart from an exact one."""
    network = make_network()
    spoilt = copy.deepcopy(network)
    with torch.no_grad():
        wrong(spoilt)
    assert agreement(network, fold(spoilt), tiny_images) < ROUNDED_ONCE_DB


def test_a_per_channel_order_of_heads_would_be_wrong(make_network, tiny_images):
    """Heads are blocks of channels; gammas repeated channel by channel (0, 1, 0, 1, ...) are another network."""
    network = make_network()
    wrong = copy.deepcopy(network)
    with torch.no_grad():
        for block in (*wrong.blocks, *wrong.cls_blocks):
            attention = block.attn
            per_head = (attention.xnorm_q.gamma * attention.xnorm_kv.gamma).flatten()
            attention.proj.weight.mul_(per_head.repeat(attention.proj.in_features // attention.heads))
            attention.xnorm_q.gamma = attention.xnorm_kv.gamma = None
    assert agreement(network, wrong, tiny_images) < 60


def test_folding_the_patch_interactions_batch_norm_forward_would_be_wrong(make_network, tiny_images):
    """Why it stays: its shift, folded into the bias of the convolution after it, is missing at the padded border only."""
    lpi = make_network().blocks[0].lpi.double()
    wrong = copy.deepcopy(lpi)
    with torch.no_grad():
        gain = lpi.norm.weight / torch.sqrt(lpi.norm.running_var + lpi.norm.eps)
        shift = lpi.norm.bias - gain * lpi.norm.running_mean
        wrong.conv2.bias += (wrong.conv2.weight * shift.reshape(-1, 1, 1, 1)).sum((1, 2, 3))
        wrong.conv2.weight *= gain.reshape(-1, 1, 1, 1)
        wrong.norm = nn.Identity()
        tokens = torch.randn(1, 36, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        difference = (lpi(tokens, (6, 6)) - wrong(tokens, (6, 6))).abs().amax(2).reshape(6, 6)
    assert difference[1:-1, 1:-1].max() < 1e-12
    assert difference[0].min() > 1e-3
