"""Figures of the precision receipt, of the placement in `calibration.json`, and of `attribution.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.report.range_tables import name_blocks
from edge.report.svg import draw
from edge.tasks.report_parts import ACCENT, BAD, GOOD, INK, MUTED, PAPER, Drawing

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from calib.placement_record import Placement
    from edge.attribution.attribution_record import Attribution, LayerDrift
    from engines.precision_receipt import Receipt

CAP_DB, FLOOR_DB = 80.0, -10.0
"""Ends of the axis of `layer_errors`: above, the error is negligible, below, nothing of the signal is left."""
LISTED_LAYERS = 20
_COLOURS = {"int8": GOOD, "fp16": ACCENT, "bf16": ACCENT, "fp32": MUTED}


def precisions(receipt: Receipt) -> Markup:
    """Share of the multiply-accumulates by precision: as the graph requests, and as the engine executes."""
    rows = (("engine does", receipt.actual), ("graph asks", receipt.requested))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, (_, shares) in enumerate(rows):
            start = 0.0
            for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
                colour = _COLOURS.get(name, BAD)
                axes.barh(row, share, left=start, height=0.62, color=colour, alpha=0.6, edgecolor=PAPER)
                if share >= 0.12:
                    axes.text(start + share / 2, row, f"{name} {share:.1%}", ha="center", va="center", color=INK)
                start += share
        axes.set(xlim=(0, 1), ylim=(-0.5, 1.5), xlabel="share of the network's multiply-accumulates")
        axes.set_yticks([0, 1], [name for name, _ in rows])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.tick_params(length=0, axis="y", labelcolor=INK)
        axes.spines["left"].set_visible(False)

    alt = "; ".join(f"{title}: " + ", ".join(f"{n} {s:.1%}" for n, s in sorted(shares.items())) for title, shares in rows)
    return draw(Drawing("precisions", (5.4, 1.4), alt, paint))


def frontier(placement: Placement) -> Markup:
    """SQNR over the share of the multiply-accumulates that is left in float, of every placement that was measured.

    Points whose steps were counted have them beside them.
    """
    points, first = placement.frontier, placement.all_int8.int8_share
    in_float = [100 * (first - point.int8_share) for point in points]
    decibels = [point.sqnr_db for point in points]
    chosen = points.index(placement.chosen)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(in_float, decibels, color=GOOD, linewidth=0.9, marker="o", markersize=4, markeredgecolor=PAPER)
        (ring,) = axes.plot(in_float[chosen], decibels[chosen], marker="o", markersize=9, color=ACCENT, fillstyle="none")
        ring.set_gid("chosen")
        for share, value, point in zip(in_float, decibels, points, strict=True):
            if point.steps is not None:
                axes.annotate(
                    f"{point.steps:,} steps",
                    (share, value),
                    (0, 7),
                    textcoords="offset points",
                    ha="center",
                    color=INK,
                    fontsize=7,
                )
        axes.set(xlabel="left in float by choice, % of the multiply-accumulates", ylabel="SQNR, dB")
        axes.margins(*((0.06, 0.15) if placement.all_int8.steps is None else (0.1, 0.25)))  # room for the steps
        axes.grid(axis="y")
        axes.tick_params(length=0)

    alt = "SQNR by the share left in float: " + "; ".join(
        f"{share:.2f} % {point.sqnr_db:.1f} dB{'' if point.steps is None else f', {point.steps} steps'}"
        f"{', chosen' if i == chosen else ''}"
        for i, (share, point) in enumerate(zip(in_float, points, strict=True))
    )
    return draw(Drawing("frontier", (5.4, 2.2), alt, paint))


def worst_layers(attribution: Attribution) -> tuple[LayerDrift, ...]:
    """The LISTED_LAYERS layers that add most error, the worst first."""
    return tuple(sorted(attribution.layers, key=lambda layer: layer.introduced_db)[:LISTED_LAYERS])


def layer_errors(attribution: Attribution) -> Markup:
    """SQNR of every layer in graph order, within FLOOR_DB and CAP_DB: introduced (dots) and accumulated (line)."""
    layers = attribution.layers
    introduced = np.clip([layer.introduced_db for layer in layers], FLOOR_DB, CAP_DB)
    accumulated = np.clip([layer.accumulated_db for layer in layers], FLOOR_DB, CAP_DB)
    blamed = {name for culprit in attribution.culprits for name in culprit.layers}
    marked = [i for i, layer in enumerate(layers) if layer.name in blamed]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        (line,) = axes.plot(range(len(layers)), accumulated, color=INK, linewidth=0.9)
        line.set_gid("gathered")
        for i, layer in enumerate(layers):
            colour = _COLOURS.get(layer.precision, MUTED)
            axes.plot([i], [introduced[i]], marker="o", markersize=4, color=colour, markeredgecolor=PAPER, markeredgewidth=0.5)
        axes.plot(marked, introduced[marked], linestyle="", marker="x", markersize=8, color=BAD, markeredgewidth=1.6)
        low = min(0.0, introduced.min(), accumulated.min()) - 3
        axes.set(ylabel="SQNR, dB", xlim=(-0.8, len(layers) - 0.2), ylim=(low, None))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        name_blocks(axes, [layer.name for layer in layers])

    worst = worst_layers(attribution)[0]
    alt = (
        f"SQNR of {len(layers)} layers from input to output; {worst.name} adds most error, {worst.introduced_db:.1f} dB; "
        f"at the output {layers[-1].accumulated_db:.1f} dB; blamed: {', '.join(sorted(blamed)) or 'none'}"
    )
    return draw(Drawing("layers", (7.4, 2.6), alt, paint))
