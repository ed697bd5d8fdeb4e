"""Looks of a sequential test: which images are judged first, how many at each look, and at which level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.drift.alpha_spending import look_levels
from edge.images.labelled_images import even_subset
from edge.tasks.interval import LEVEL, level_text
from edge.tasks.task import Int64, Sides

SHARES = (0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
"""Shares of the images at which a verdict is tried."""
FEWEST = 500
"""Images of the first look: fewer show too few changed answers for an interval of the high level that an early look needs."""


@dataclass(frozen=True)
class Look:
    """At which look of how many a verdict was decided, and how many images there were. Raises ValueError for what cannot be."""

    number: int
    of: int
    available: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of or self.of < 2 or self.of != len(look_sizes(self.available)):
            raise ValueError(f"look {self.number} of {self.of} at {self.available} images")

    @property
    def images(self) -> int:
        """Number of images judged."""
        return look_sizes(self.available)[self.number - 1]

    @property
    def level(self) -> float:
        """Level of the interval at this look."""
        return look_levels(look_sizes(self.available))[self.number - 1]

    def __str__(self) -> str:
        images = f"{self.images:,} of {self.available:,} images, look {self.number} of {self.of}"
        return f"{images}: intervals of {level_text(self.level)} here keep {level_text(LEVEL)} over all looks"


def join_sides(parts: Sequence[Sides], order: Int64, truth: Any) -> Sides:
    """The outputs of groups of images as one, in this order of their images, whose right answers are `truth`."""
    sides = ([getattr(part, side) for part in parts] for side in ("reference", "engine"))
    reference, engine = (tuple(np.concatenate(group)[order] for group in zip(*side, strict=True)) for side in sides)
    return Sides(reference, engine, truth)


def look_sizes(images: int) -> tuple[int, ...]:
    """Numbers of images at each look, ascending, the last of them all; a single one where they are few."""
    early = [round(share * images) for share in SHARES[:-1]]
    return (*(size for size in early if size >= FEWEST), images)


def look_subset(sha256: str, images: int, number: int) -> tuple[Int64, str]:
    """Ascending positions of the images of look `number` (from 1) among all `images`, and the digest of the subset.

    Each look's images are spread evenly over those of the next one, so that the content of the data alone chooses them.
    `sha256` is the digest of all.
    """
    positions: Int64 = np.arange(images)
    for size in reversed(look_sizes(images)[number - 1 : -1]):
        chosen, sha256 = even_subset(sha256, len(positions), size)
        positions = positions[chosen]
    return positions, sha256
