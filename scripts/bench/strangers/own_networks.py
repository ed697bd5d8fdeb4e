"""Wrappers that make tensors of what a library's network answers, and a small U-Net with transposed convolutions."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class Maps(nn.Module):
    """torchvision's segmentation networks: the map, and that of the auxiliary head if there is one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) to maps (B, classes, H, W)."""
        return tuple(self.network(images).values())


class Heads(nn.Module):
    """torchvision's detectors from the backbone to the heads, without resizing, anchors and non-maximum suppression."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        self.head = network.get_submodule("head")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) to scores, boxes and what else the heads give, (B, anchors, ...) each."""
        features = self.backbone(images)
        levels = list(features.values()) if isinstance(features, OrderedDict | dict) else [features]
        return tuple(self.head(levels).values())


class _Stage(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.SiLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.SiLU(),
        )


class UNet(nn.Module):
    """Three levels down and up again."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 160)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_Stage(*pair) for pair in zip((3, *widths), widths, strict=False))
        steps = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(*step, 2, stride=2) for step in steps)
        self.join = nn.ModuleList(_Stage(2 * width, width) for width in reversed(widths[:-1]))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(widths[0], 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), H and W multiples of 8, to maps (B, 8, H, W)."""
        skipped: list[Tensor] = []
        features = images
        for level, stage in enumerate(self.down):
            features = stage(self.pool(features) if level else features)
            skipped.append(features)
        skipped.pop()
        for up, join in zip(self.up, self.join, strict=True):
            features = join(torch.cat((up(features), skipped.pop()), dim=1))
        maps: Tensor = self.head(features)
        return maps
