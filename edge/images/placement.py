"""Where a picture lies in the image that the network sees: how it is scaled, and what is cut off or filled at the sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fit = Literal["crop", "stretch", "letterbox"]
FITS: tuple[Fit, ...] = ("crop", "stretch", "letterbox")


@dataclass(frozen=True)
class AxisPlacement:
    """One axis of a placement, in pixels.

    Attributes:
        size: of the picture.
        resized: the picture's size after resizing.
        length: of the network's image.
        offset: position of the resized picture's first pixel in the network's image; negative where the picture is cut.
    """

    size: int
    resized: int
    length: int
    offset: int

    @property
    def scale(self) -> float:
        """Network pixels per picture pixel."""
        return self.resized / self.size

    @property
    def first(self) -> int:
        """The first row of the resized picture that the network sees."""
        return max(0, -self.offset)

    @property
    def shown(self) -> int:
        """How many rows of the resized picture the network sees."""
        return min(self.resized, self.length)


@dataclass(frozen=True)
class Placement:
    """A point of the picture at (y, x) is seen at (y * vertical.scale + vertical.offset, x * horizontal.scale + ...)."""

    vertical: AxisPlacement
    horizontal: AxisPlacement

    @property
    def scale(self) -> tuple[float, float]:
        """Of y and of x; the same for both up to rounding to whole pixels, except for "stretch"."""
        return self.vertical.scale, self.horizontal.scale

    @property
    def offset(self) -> tuple[int, int]:
        """Of y and of x, pixels of the network's image."""
        return self.vertical.offset, self.horizontal.offset


def place(picture: tuple[int, int], image: tuple[int, int], resize: int, fit: Fit) -> Placement:
    """Place a picture (height, width) into the network's image (height, width).

    crop: the picture just covers `image` enlarged by resize / min(image); the centre is cut out.
    stretch: each side is resized to that of the image.
    letterbox: the whole picture, as large as it fits, in the centre.
    """
    (height, width), (rows, columns) = picture, image
    if fit == "stretch":
        return Placement(AxisPlacement(height, rows, rows, 0), AxisPlacement(width, columns, columns, 0))
    numerator, denominator = exact_scale(picture, image, resize, fit)
    axes = []
    for size, length in ((height, rows), (width, columns)):
        resized = round(size * numerator / denominator)
        resized = max(length, resized) if fit == "crop" else min(length, max(1, resized))
        axes.append(
            AxisPlacement(size, resized, length, (length - resized) // 2 if fit == "letterbox" else -((resized - length) // 2))
        )
    return Placement(*axes)


def exact_scale(picture: tuple[int, int], image: tuple[int, int], resize: int, fit: Fit) -> tuple[int, int]:
    """Network pixels per picture pixel, (numerator, denominator); for "stretch" along the side that is enlarged more."""
    (height, width), (rows, columns) = picture, image
    vertical_is_larger = rows * width >= columns * height
    length, size = (rows, height) if vertical_is_larger == (fit != "letterbox") else (columns, width)
    return (length * resize, min(image) * size) if fit == "crop" else (length, size)
