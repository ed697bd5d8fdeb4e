"""Render matplotlib figures as inline SVG in the page's theme: colours are CSS variables, text stays text.

matplotlib knows no CSS, so each themed colour is drawn as a placeholder and replaced in the tags of the finished SVG. Equal
figures give equal bytes: fixed hash salt, no date, default settings whatever the user's matplotlibrc.
"""

import io
import re
import warnings
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from edge.tasks.report_parts import ACCENT, BAD, GOOD, INK, LINE, MUTED, PAPER, WARN, Drawing

_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    GOOD: "good",
    BAD: "bad",
    ACCENT: "accent",
    WARN: "warn",
}
_SETTINGS: dict[Any, Any] = {  # matplotlib types the keys as a literal of all settings
    "svg.hashsalt": "ufovit",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
}


def draw(drawing: Drawing) -> Markup:
    """Render a drawing as an inline `<svg>`."""
    stream = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")  # the browser's fonts draw it
        figure = Figure(figsize=drawing.size, layout="constrained")
        drawing.paint(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    return Markup(_embed(stream.getvalue(), drawing))  # noqa: S704  # matplotlib escapes every text


def _embed(document: str, drawing: Drawing) -> str:
    """The `<svg>` element of a document: themed, with prefixed ids, without XML namespaces and metadata."""
    start = document.index("<svg")
    body = document[document.index(">", start) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _retag(tag.group(), drawing.name), body)
    width, height = (round(inches * 72) for inches in drawing.size)
    attributes = f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(drawing.alt)}"'
    return f'<svg {attributes} style="max-width:{drawing.size[0] * 96:g}px">{body}'


def _retag(tag: str, name: str) -> str:
    for placeholder, variable in _VARIABLES.items():
        tag = tag.replace(placeholder, f"var(--{variable})")
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', tag)
    return tag.replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", "system-ui")
