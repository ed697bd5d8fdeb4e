"""What surrounds the attention in a UFO-ViT: stem, local patch interaction, feed-forward, the two kinds of block.

Where the UFO-ViT paper leaves details open they follow XCiT (arXiv 2106.09681): the convolutional stem, the local patch
interaction, pre-LayerNorm with eps 1e-6, LayerScale. The class-attention block is CaiT's (arXiv 2103.17239): the class
token alone is updated, from itself and all patch tokens.
"""

import itertools

import torch
from torch import Tensor, nn

from edge.model.attention import UfoAttention
from edge.model.sizes import UfoVitConfig

LAYER_NORM_EPS = 1e-6


class ConvStem(nn.Sequential):
    """Four 3x3 stride-2 convolutions: image (B, 3, H, W) -> patch features (B, C, H/STEM_STRIDE, W/STEM_STRIDE).

    `widths` are the channels of the four, the last C; no bias, BatchNorm after each, GELU after the first three.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for i, (w_in, w_out) in enumerate(itertools.pairwise((3, *widths))):
            layers += [nn.Conv2d(w_in, w_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(w_out)]
            if i < 3:
                layers.append(nn.GELU())
        super().__init__(*layers)


class LayerScale(nn.Module):
    """Per-channel learnable gain on a residual branch: x * gain, with `gain` of shape (C,).

    `gain` is None once `edge.model.export` has folded it into the branch's last layer.
    """

    gain: nn.Parameter | None

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return x if self.gain is None else x * self.gain


class LocalPatchInteraction(nn.Module):
    """Depthwise 3x3 convolution, GELU, BatchNorm, depthwise 3x3 convolution over the grid of patch tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) in row-major order of a `grid` (h, w) with h * w = N -> (B, N, C)."""
        image = x.transpose(1, 2).reshape(x.shape[0], -1, *grid)  # (B, C, h, w)
        image = self.conv2(self.norm(self.act(self.conv1(image))))
        tokens: Tensor = image.flatten(2).transpose(1, 2)  # (B, N, C)
        return tokens


class FeedForward(nn.Sequential):
    """Linear, GELU, Linear with `expansion` * C channels between: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))


class Block(nn.Module):
    """UFO attention, then local patch interaction, then feed-forward; each pre-normed, layer-scaled and residual."""

    def __init__(self, cfg: UfoVitConfig) -> None:
        super().__init__()
        dim, layer_scale = cfg.dim, cfg.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = UfoAttention(dim, cfg.heads, cfg.kv_axis)
        self.scale1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.lpi = LocalPatchInteraction(dim)
        self.scale2 = LayerScale(dim, layer_scale)
        self.norm3 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(dim, cfg.ffn_expansion)
        self.scale3 = LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) of the patch `grid` (h, w) -> (B, N, C)."""
        normed = self.norm1(x)
        x = x + self.scale1(self.attn(normed, normed))
        x = x + self.scale2(self.lpi(self.norm2(x), grid))
        x = x + self.scale3(self.ffn(self.norm3(x)))
        return x


class ClassAttentionBlock(nn.Module):
    """The class token reads itself and the patch tokens, and is the only one to change."""

    def __init__(self, cfg: UfoVitConfig) -> None:
        super().__init__()
        dim, layer_scale = cfg.dim, cfg.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = UfoAttention(dim, cfg.heads, cfg.kv_axis)
        self.scale1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(dim, cfg.ffn_expansion)
        self.scale2 = LayerScale(dim, layer_scale)

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Class token (B, 1, C), patch tokens (B, N, C) -> class token (B, 1, C)."""
        normed = self.norm1(torch.cat([cls, patches], dim=1))
        cls = cls + self.scale1(self.attn(normed[:, :1], normed))
        cls = cls + self.scale2(self.ffn(self.norm2(cls)))
        return cls
