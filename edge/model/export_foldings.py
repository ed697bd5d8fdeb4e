"""Exact foldings before export: fewer nodes, the same function.

    gamma_q, gamma_kv   into the columns of the output projection that read this head   W[:, h] <- gamma_q gamma_kv W[:, h]
    LayerScale          into the rows and bias of the branch's last layer               W <- g W,  b <- g b
    stem's BatchNorm    into the convolution before it            W <- s W,  b <- beta - s mu,  s = gamma / sqrt(var + eps)

The BatchNorm of the local patch interaction stays: it is between a GELU and a zero-padded convolution, where its shift
does not reach the padding, so that folding it forward would be wrong at the border of the image.

All products are taken in float64 and rounded once to float32.
"""

import copy

import torch
from torch import Tensor, nn

from edge.model.attention import UfoAttention
from edge.model.blocks import Block, ClassAttentionBlock, ConvStem, LayerScale
from edge.model.ufo_vit import UfoVit

FOLDINGS = ("xnorm_gamma", "layer_scale", "stem_batch_norm")


@torch.no_grad()
def fold(model: UfoVit) -> UfoVit:
    """A copy of the network, in eval mode, with the foldings above carried out. The argument is left as it was."""
    folded = copy.deepcopy(model).eval()
    fold_stem(folded.stem)
    for module in folded.modules():
        if isinstance(module, UfoAttention):
            fold_gammas(module)
    for block in folded.blocks:
        assert isinstance(block, Block)
        fold_layer_scale(block.scale1, block.attn.proj)
        fold_layer_scale(block.scale2, block.lpi.conv2)
        fold_layer_scale(block.scale3, block.ffn[2])
    for block in folded.cls_blocks:
        assert isinstance(block, ClassAttentionBlock)
        fold_layer_scale(block.scale1, block.attn.proj)
        fold_layer_scale(block.scale2, block.ffn[2])
    return folded


def fold_gammas(attention: UfoAttention) -> None:
    """Move the gammas of Q and K^T V, shape (1, H, 1, 1), into the output projection's input columns, in place."""
    gamma_q, gamma_kv = attention.xnorm_q.gamma, attention.xnorm_kv.gamma
    assert gamma_q is not None
    assert gamma_kv is not None
    per_head = (gamma_q.double() * gamma_kv.double()).flatten()  # (H,)
    columns = per_head.repeat_interleave(attention.proj.in_features // attention.heads)  # (C,)
    _set(attention.proj.weight, attention.proj.weight.double() * columns)
    attention.xnorm_q.gamma = attention.xnorm_kv.gamma = None


def fold_layer_scale(scale: LayerScale, last: nn.Module) -> None:
    """Move a LayerScale gain (C,) into the output channels of the branch's last linear or convolution, in place."""
    assert isinstance(last, nn.Linear | nn.Conv2d)
    assert last.bias is not None
    assert scale.gain is not None
    gain = scale.gain.double()
    _set(last.weight, last.weight.double() * gain.reshape(-1, *[1] * (last.weight.ndim - 1)))
    _set(last.bias, last.bias.double() * gain)
    scale.gain = None


def fold_stem(stem: ConvStem) -> None:
    """Fold each BatchNorm of the stem into the convolution before it, in place."""
    for i, layer in enumerate(stem):
        if not isinstance(layer, nn.BatchNorm2d):
            continue
        convolution = stem[i - 1]
        assert isinstance(convolution, nn.Conv2d)
        assert layer.running_var is not None
        assert layer.running_mean is not None
        gain = layer.weight.double() / torch.sqrt(layer.running_var.double() + layer.eps)
        _set(convolution.weight, convolution.weight.double() * gain.reshape(-1, 1, 1, 1))
        convolution.bias = nn.Parameter((layer.bias.double() - gain * layer.running_mean.double()).float())
        stem[i] = nn.Identity()


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.float())
