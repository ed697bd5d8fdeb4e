"""A task's part of a report as plain data: figures, rows, and sections of text, drawings and templates.

Colours of drawings are placeholders, which the report replaces by those of the page's theme. matplotlib is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

INK, MUTED, LINE, PAPER = "#010201", "#010202", "#010203", "#010204"
GOOD, BAD, ACCENT, WARN = "#010205", "#010206", "#010207", "#010208"
FEW = 30
"""Number of images below which a group or a class is drawn pale, as weak evidence."""


@dataclass(frozen=True)
class Value:
    """One number: its key in the artifact ("": none), the exact value, and its text."""

    key: str
    raw: Any
    text: str


Text = tuple[str | Value, ...]
"""Words, `Markup` among them, and numbers."""


@dataclass(frozen=True)
class Figure:
    """A key figure: one or more values under one name, their meaning, and the text between them."""

    name: str
    values: tuple[Value, ...]
    meaning: str
    between: str = " → "


@dataclass(frozen=True)
class NumberRow:
    """One row of the table of all figures: value before quantization (None: none), after it or of the change, meaning."""

    name: str
    before: Value | None
    after: Value | str
    meaning: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: Text


@dataclass(frozen=True)
class Drawing:
    """A drawing.

    Attributes:
        name: unique on the page, prefixes every id.
        size: width and height in inches of 96 CSS pixels.
        alt: description for people who cannot see it.
        paint: draws on an empty matplotlib figure, in the colours of this module.
    """

    name: str
    size: tuple[float, float]
    alt: str
    paint: Callable[[Canvas], None]
    caption: Text = ()


@dataclass(frozen=True)
class Fragment:
    """HTML from a jinja2 template of the task, by its path in `edge/`; it reads `values` as `shown`, and `drift`."""

    template: str
    values: dict[str, Any]


Block = Paragraph | Drawing | Fragment


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class TaskReport:
    """Everything that a report shows of the answers.

    Attributes:
        headline: what the verdict means, one sentence.
        advice: what to do next, "" after a pass.
        evidence: drawing of the figures that the verdict rests on beside the budget, None where there is none.
        basis: what the verdict rests on: below `evidence`, or instead of it.
        truth: whether the images have right answers, in a word or two.
        numbers: every figure of the comparison.
        words: glossary, term -> meaning.
        outputs: name of the network's outputs.
    """

    headline: str
    advice: str
    evidence: Drawing | None
    basis: Text
    figures: tuple[Figure, ...]
    truth: str
    numbers: tuple[NumberRow, ...]
    sections: tuple[Section, ...]
    words: dict[str, str]
    outputs: str = "outputs"


def shorten(name: str, longest: int = 24) -> str:
    """Shorten a name for an axis, and drop control characters."""
    clean = "".join(c for c in name if c.isprintable())
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
