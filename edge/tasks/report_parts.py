"""What a task says in a report, as plain data: figures, rows, and sections of text, drawings, tables and cards.

Colours of drawings are stand-ins, which the report replaces by those of the page's theme. matplotlib is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edge.tasks.interval import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

INK, MUTED, LINE, PAPER = "#010201", "#010202", "#010203", "#010204"
GOOD, BAD, ACCENT, WARN = "#010205", "#010206", "#010207", "#010208"
FEW = 30
"""Images below which a group or a class is drawn pale: whatever it shows rests on hardly anything."""


@dataclass(frozen=True)
class Value:
    """One number: its key in the artifact, "" for none, the exact value, and the text a person reads."""

    key: str
    raw: Any
    text: str


@dataclass(frozen=True)
class Span:
    """Words in a colour, "good" or "bad", or with an id that something refers to."""

    text: str
    tint: str = ""
    id: str = ""


Text = tuple[str | Value | Span, ...]


@dataclass(frozen=True)
class Figure:
    """A key figure: one or more values under one name, what they mean, and what stands between them."""

    name: str
    values: tuple[Value, ...]
    meaning: str
    between: str = " → "


@dataclass(frozen=True)
class NumberRow:
    """One line: name, value before quantization if it has one, value after it or of the change, and what it means."""

    name: str
    before: Value | None
    after: Value | str
    meaning: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, with an id where something refers to it."""

    kind: ClassVar[str] = "paragraph"
    text: Text
    id: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        name: unique on the page.
        size: width and height in inches of 96 CSS pixels.
        alt: what a person who cannot see the figure is told.
        paint: draws on an empty matplotlib figure, in the colours of this module.
        caption: below it.
        wide: whether it needs the width of the page.
    """

    kind: ClassVar[str] = "drawing"
    name: str
    size: tuple[float, float]
    alt: str
    paint: Callable[[Canvas], None]
    caption: Text
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table that a person unfolds; the first column names the rows. `name` is its class."""

    kind: ClassVar[str] = "table"
    name: str
    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Value, ...], ...]


@dataclass(frozen=True)
class Card:
    """An image and what was answered.

    Attributes:
        index: of the image among the judged ones.
        alt: what a person who cannot see the picture is told.
        turn: what happened, None where nobody knows.
        rows: (term, text, figure behind it or "").
    """

    index: int
    alt: str
    turn: Span | None
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Gallery:
    """Cards of images whose pictures were kept."""

    kind: ClassVar[str] = "gallery"
    cards: tuple[Card, ...]


Block = Paragraph | Heading | Drawing | Table | Gallery


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Budgeted:
    """The figure that a verdict is about: its value and interval in points, and what it is, for the axis of its drawing."""

    points: float
    interval: Interval
    what: str


@dataclass(frozen=True)
class TaskReport:
    """Everything that a report says of the answers.

    Attributes:
        headline: what the verdict means, one sentence.
        advice: what to do next, "" after a pass.
        budgeted: the figure that the verdict is about, None where it is about numbers alone.
        basis: what the verdict rests on: below the drawing of `budgeted`, or in its place.
        figures: key figures.
        truth: whether the images came with right answers, in a word or two.
        numbers: every number of the comparison.
        sections: in order.
        words: term -> meaning.
        outputs: what the network's outputs are called.
    """

    headline: str
    advice: str
    budgeted: Budgeted | None
    basis: Text
    figures: tuple[Figure, ...]
    truth: str
    numbers: tuple[NumberRow, ...]
    sections: tuple[Section, ...]
    words: dict[str, str]
    outputs: str = "outputs"


def shorten(name: str, longest: int = 24) -> str:
    """A name short enough for an axis, without control characters."""
    clean = "".join(c for c in name if c.isprintable())
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
