"""Pictures of images inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from edge.drift.pictures import KeptPictures, Uint8

SHOWN_PIXELS = 96
"""Longest side on the page, in CSS pixels; a smaller picture is enlarged by a whole number, so that its pixels stay square."""


@dataclass(frozen=True)
class ShownPicture:
    """A picture.

    Attributes:
        source: as a data URI.
        width, height: in CSS pixels.
        coarse: whether pixels are to be enlarged without smoothing.
    """

    source: Markup
    width: int
    height: int
    coarse: bool


def shown_pictures(kept: KeptPictures | None) -> dict[int, ShownPicture]:
    """Index of an image -> its picture, for those of which one was kept."""
    if kept is None:
        return {}
    pairs = zip(kept.indices.tolist(), kept.pictures, strict=True)
    return {index: ShownPicture(data_uri(picture), *shown_size(picture)) for index, picture in pairs}


def shown_size(picture: Uint8) -> tuple[int, int, bool]:
    """Width and height in CSS pixels, and whether the enlargement is by a whole number of 2 or more."""
    height, width = picture.shape[:2]
    times = SHOWN_PIXELS / max(height, width)
    if times >= 2:
        return width * int(times), height * int(times), True
    return max(1, round(width * times)), max(1, round(height * times)), False


def data_uri(picture: Uint8) -> Markup:
    """RGB uint8 (h, w, 3) as a PNG inside an address; a picture without colour takes one channel."""
    grey = (picture == picture[:, :, :1]).all()
    stream = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if grey else picture).save(stream, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())  # noqa: S704  # base64 has no markup
