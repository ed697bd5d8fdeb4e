"""The figure of `attribution.json`: the error that every layer adds, and what has gathered on the way to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.report.certificate_plot import name_blocks
from edge.report.svg import draw
from edge.tasks.report_parts import ACCENT, BAD, GOOD, INK, MUTED, PAPER

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from edge.attribution.attribution_record import Attribution, LayerDrift

CAP_DB, FLOOR_DB = 80.0, -10.0
"""What is drawn: beyond, nothing is lost, or nothing is left."""
LISTED = 20
_COLOURS = {"int8": GOOD, "fp16": ACCENT, "bf16": ACCENT}


def worst_layers(attribution: Attribution) -> tuple[LayerDrift, ...]:
    """The LISTED layers that add most error, the worst first."""
    return tuple(sorted(attribution.layers, key=lambda layer: layer.introduced_db)[:LISTED])


def layer_errors(attribution: Attribution) -> Markup:
    """SQNR of every layer in graph order, within FLOOR_DB and CAP_DB: introduced (dots) and accumulated (line)."""
    layers = attribution.layers
    adds = np.clip([layer.introduced_db for layer in layers], FLOOR_DB, CAP_DB)
    gathered = np.clip([layer.accumulated_db for layer in layers], FLOOR_DB, CAP_DB)
    blamed = {name for culprit in attribution.culprits for name in culprit.layers}
    marked = [i for i, layer in enumerate(layers) if layer.name in blamed]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        (line,) = axes.plot(range(len(layers)), gathered, color=INK, linewidth=0.9)
        line.set_gid("gathered")
        for i, layer in enumerate(layers):
            colour = _COLOURS.get(layer.precision, MUTED)
            axes.plot([i], [adds[i]], marker="o", markersize=4, color=colour, markeredgecolor=PAPER, markeredgewidth=0.5)
        axes.plot(marked, adds[marked], linestyle="", marker="x", markersize=8, color=BAD, markeredgewidth=1.6)
        axes.set(ylabel="SQNR, dB", xlim=(-0.8, len(layers) - 0.2), ylim=(min(0.0, adds.min(), gathered.min()) - 3, None))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        name_blocks(axes, [layer.name for layer in layers])

    worst = worst_layers(attribution)[0]
    alt = (
        f"SQNR of {len(layers)} layers from input to output; {worst.name} adds most error, {worst.introduced_db:.1f} dB; "
        f"at the output {layers[-1].accumulated_db:.1f} dB; blamed: {', '.join(sorted(blamed)) or 'none'}"
    )
    return draw("layers", (7.4, 2.6), alt, paint)
