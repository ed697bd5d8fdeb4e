"""Pictures of the flipped images, embedded in the page."""

import base64
import io
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from edge.drift.pictures import KeptPictures, Uint8

SHOWN_PIXELS = 96
"""Longest side on the page in CSS pixels; a smaller picture is enlarged by an integer, so that its pixels stay square."""


@dataclass(frozen=True)
class ShownPicture:
    """A picture as a data URI, its size in CSS pixels, and whether (`coarse`) it is enlarged without smoothing."""

    source: Markup
    width: int
    height: int
    coarse: bool


def shown_pictures(kept: KeptPictures | None) -> dict[int, ShownPicture]:
    """Index of a judged image -> its picture, for images whose picture was kept."""
    pairs = zip(kept.indices.tolist(), kept.pictures, strict=True) if kept else ()
    return {index: _shown(picture) for index, picture in pairs}


def _shown(picture: Uint8) -> ShownPicture:
    height, width = picture.shape[:2]
    times = SHOWN_PIXELS / max(height, width)
    coarse = times >= 2
    scale = int(times) if coarse else times
    return ShownPicture(_data_uri(picture), max(1, round(width * scale)), max(1, round(height * scale)), coarse)


def _data_uri(picture: Uint8) -> Markup:
    """Encode RGB uint8 (h, w, 3) as a PNG data URI, with one channel where the picture is grey."""
    grey = (picture == picture[:, :, :1]).all()
    stream = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if grey else picture).save(stream, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())  # noqa: S704  # base64 has no markup
