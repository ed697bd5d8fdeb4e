"""UFO-ViT, read top to bottom; its sizes are in `edge.model.sizes`.

image (B, 3, H, W) -> stem -> patch tokens (B, N, C), N = H/16 * W/16, row by row -> + position embedding
-> depth x [UFO attention, local patch interaction, feed-forward]
-> class_layers x class attention -> LayerNorm(class token) -> logits (B, classes)
"""

import torch
from torch import Tensor, nn

from edge.model.blocks import LAYER_NORM_EPS, Block, ClassAttentionBlock, ConvStem
from edge.model.sizes import UfoVitConfig


class UfoVit(nn.Module):
    """The network, from a normalised image to logits."""

    def __init__(self, cfg: UfoVitConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.stem = ConvStem(cfg.widths)
        self.pos_embed = nn.Parameter(torch.zeros(1, cfg.grid[0] * cfg.grid[1], cfg.dim))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.cls_blocks = nn.ModuleList(ClassAttentionBlock(cfg) for _ in range(cfg.class_layers))
        self.norm = nn.LayerNorm(cfg.dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(cfg.dim, cfg.classes)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, H, W), float -> logits (B, classes)."""
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


def resize_position_embedding(embed: Tensor, old: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of a position embedding (1, N, C) from the patch grid `old` (h, w) to `grid`: (1, h * w, C)."""
    if old == grid:
        return embed
    image = embed.float().transpose(1, 2).reshape(1, -1, *old)  # (1, C, h, w)
    image = nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return image.flatten(2).transpose(1, 2).to(embed.dtype)
