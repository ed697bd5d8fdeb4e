"""The gallery of the flips: each image whose answer changed between right and wrong, with both answers and confidences."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup
from PIL import Image

from edge.tasks.classification.flips import Uint8, confidences, flipped, truth
from edge.tasks.classification.logits import answers

if TYPE_CHECKING:
    from edge.report.inputs import Evidence

SHOWN_PIXELS = 96
"""Longest side on the page, in CSS pixels; a smaller picture is enlarged by a whole number, so that its pixels stay square."""
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Card:
    """One flip.

    Attributes:
        index: of the image among the judged ones.
        source: the picture as a data URI.
        width, height: in CSS pixels.
        coarse: whether pixels are to be enlarged without smoothing.
        label: the right answer, "" where nobody knows it.
        before, after: the two sides' answers.
        sure_before, sure_after: their confidences in [0, 1]; None where there is no answer.
        better: whether the flip was from wrong to right.
    """

    index: int
    source: Markup
    width: int
    height: int
    coarse: bool
    label: str
    before: str
    after: str
    sure_before: float
    sure_after: float | None
    better: bool

    @property
    def alt(self) -> str:
        """What a person who cannot see the picture is told."""
        return f"image {self.index}" + (f": {self.label}" if self.label else "")


def cards(evidence: Evidence) -> tuple[Card, ...]:
    """The flips of which pictures were kept, in the order in which they were kept; none for drawn weights."""
    flips, logits, names = evidence.flips, evidence.logits, evidence.manifest.labels
    if flips is None:
        return ()
    answered, right = (answers(logits.reference), answers(logits.engine)), truth(logits.reference, logits.labels)
    sure = confidences(logits.reference).max(axis=1), confidences(logits.engine).max(axis=1)
    found = []
    for i, picture in zip(flips.indices.tolist(), flips.pictures, strict=True):
        before, after = (int(side[i]) for side in answered)
        width, height, coarse = shown_size(picture)
        found.append(
            Card(
                index=i,
                source=data_uri(picture),
                width=width,
                height=height,
                coarse=coarse,
                label="" if logits.labels is None else names[right[i]],
                before=names[before],
                after=names[after] if after >= 0 else NO_ANSWER,
                sure_before=float(sure[0][i]),
                sure_after=float(sure[1][i]) if after >= 0 else None,
                better=after == right[i],
            )
        )
    return tuple(found)


def total_flips(evidence: Evidence) -> int:
    """How many images flipped; pictures are kept of a few."""
    logits = evidence.logits
    return int(flipped(logits.reference, logits.engine, logits.labels).sum())


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
