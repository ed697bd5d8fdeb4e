"""UFO-ViT: configuration, sizes and the network, read top to bottom.

image (B, 3, S, S) -> stem -> patch tokens (B, N, C), N = (S/16)^2 -> + position embedding
-> depth x [UFO attention, local patch interaction, feed-forward]
-> 2 x class attention -> LayerNorm(class token) -> logits (B, classes)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from calib.errors import InputError
from edge.model.attention import KvAxis
from edge.model.blocks import LAYER_NORM_EPS, Block, ClassAttentionBlock, ConvStem

CLASS_LAYERS = 2
_KV_AXES = ("contraction", "last")


@dataclass(frozen=True)
class UfoVitConfig:
    """Shape of a UFO-ViT. Impossible shapes cannot be made: the constructor raises InputError.

    Attributes:
        name: one of SIZES, or any name for a custom shape.
        depth: number of self-attention blocks.
        dim: channels C, divisible by 8 (stem widths) and by `heads`.
        heads: heads H.
        image_size: side S of the square input in pixels, a multiple of the stem's stride of 16.
        classes: number of logits.
        kv_axis: axis of K^T V that XNorm normalises; see `edge.model.attention`.
        layer_scale: initial LayerScale gain, of interest to training only.
    """

    name: str
    depth: int
    dim: int
    heads: int
    image_size: int = 224
    classes: int = 1000
    kv_axis: KvAxis = "contraction"
    layer_scale: float = 0.1

    def __post_init__(self) -> None:
        if self.image_size < ConvStem.stride or self.image_size % ConvStem.stride:
            raise InputError(
                "image size does not fit the stem",
                found=f"{self.image_size} px",
                allowed=f"positive multiples of {ConvStem.stride} px, the stem's stride",
                next_command="pass --image-size with such a multiple",
            )
        if self.dim % self.heads or self.dim % 8:
            raise InputError(
                "embedding dimension does not fit heads and stem",
                found=f"dim {self.dim}, heads {self.heads}",
                allowed="dim divisible by heads and by 8",
            )
        if self.classes < 1 or self.depth < 1:
            raise InputError("classes and depth must be positive", found=f"{self.classes}, {self.depth}")
        if self.kv_axis not in _KV_AXES:
            raise InputError("unknown XNorm axis", found=str(self.kv_axis), allowed=", ".join(_KV_AXES))

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w)."""
        side = self.image_size // ConvStem.stride
        return side, side

    @property
    def xnorm_sites(self) -> int:
        """Number of XNorms in the network: Q and K^T V of every attention."""
        return 2 * (self.depth + CLASS_LAYERS)


SIZES: dict[str, UfoVitConfig] = {
    "ufovit_t": UfoVitConfig("ufovit_t", depth=24, dim=192, heads=4),
    "ufovit_s": UfoVitConfig("ufovit_s", depth=12, dim=384, heads=8),
    "ufovit_m": UfoVitConfig("ufovit_m", depth=24, dim=384, heads=8),
    "ufovit_b": UfoVitConfig("ufovit_b", depth=24, dim=512, heads=8),
}


def config(name: str, *, image_size: int = 224, classes: int = 1000, kv_axis: KvAxis = "contraction") -> UfoVitConfig:
    """The configuration of a named size. Raises InputError with the known names for an unknown one."""
    if name not in SIZES:
        raise InputError(f"unknown model {name!r}", allowed=", ".join(SIZES))
    return replace(SIZES[name], image_size=image_size, classes=classes, kv_axis=kv_axis)


class UfoVit(nn.Module):
    """The network, from a normalised image to logits."""

    def __init__(self, cfg: UfoVitConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.stem = ConvStem(cfg.dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, cfg.grid[0] * cfg.grid[1], cfg.dim))
        self.blocks = nn.ModuleList(Block(cfg.dim, cfg.heads, cfg.kv_axis, cfg.layer_scale) for _ in range(cfg.depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.cls_blocks = nn.ModuleList(
            ClassAttentionBlock(cfg.dim, cfg.heads, cfg.kv_axis, cfg.layer_scale) for _ in range(CLASS_LAYERS)
        )
        self.norm = nn.LayerNorm(cfg.dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(cfg.dim, cfg.classes)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, S, S), float -> logits (B, classes)."""
        patches = self.stem(image).flatten(2).transpose(1, 2) + self.pos_embed  # (B, N, C)
        for block in self.blocks:
            patches = block(patches, self.cfg.grid)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)  # (B, 1, C)
        for block in self.cls_blocks:
            cls = block(cls, patches)
        logits: Tensor = self.head(self.norm(cls[:, 0]))
        return logits


def init_weights(model: UfoVit, seed: int) -> None:
    """Draw weights for training or for `--random-weights`: truncated normal, std 0.02; zero biases (ViT's recipe)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            if module.groups > 1:  # fan_out counts all channels of a depthwise convolution: rescale to its 3x3 window
                module.weight.data.mul_(module.groups**0.5 / 2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.pos_embed, std=0.02, generator=generator)
    nn.init.trunc_normal_(model.cls_token, std=0.02, generator=generator)


def resize_position_embedding(embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of a position embedding (1, N, C) of a square grid to `grid`: (1, h * w, C)."""
    side = round(embed.shape[1] ** 0.5)
    if (side, side) == grid:
        return embed
    image = embed.float().transpose(1, 2).reshape(1, -1, side, side)  # (1, C, side, side)
    image = nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return image.flatten(2).transpose(1, 2).to(embed.dtype)
