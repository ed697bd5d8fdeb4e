"""The figure of a certificate: sum a^2 of every XNorm against what FP16 can hold, before and after the repair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.patches import Rectangle
from matplotlib.ticker import MultipleLocator

from edge.report.certificate_text import verdict_counts
from edge.report.range_tables import block_of
from edge.report.svg import draw
from edge.stability.float_formats import FP16
from edge.tasks.report_parts import ACCENT, BAD, GOOD, INK, LINE, MUTED, WARN, shorten

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edge.stability.certificate import SiteCertificate, XNormCertificate
    from edge.stability.verdict import Stability

_COLOURS: dict[Stability, str] = {"stable": GOOD, "at risk": WARN, "unstable": BAD}
_STRENGTH = {"kv": 0.85, "q": 0.5}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LIMITS = (
    (FP16.largest, f"{FP16.largest:g} largest"),
    (FP16.smallest_normal, "2⁻¹⁴ normal"),
    (FP16.smallest_subnormal, "2⁻²⁴ subnormal"),
)
_NAMED = 24
"""Blocks that the axis can name legibly."""

Panel = tuple[str, "tuple[SiteCertificate, ...]"]


def panels(certificate: XNormCertificate) -> tuple[Panel, ...]:
    """Titles and sites of what is drawn: before and after where something was repaired, else the sites as they are."""
    after = certificate.sites
    if not any(new != old for new, old in zip(after, certificate.before, strict=False)):
        return (("", after),)
    return ("before", certificate.before), ("after folding" if any(site.fold for site in after) else "after repair", after)


def sums(certificate: XNormCertificate) -> Markup:
    """A bar per XNorm in network order, on an axis of log2: from the smallest sum a^2 observed to the largest of any input.

    Where nothing is certified the bar is hollow and ends at the largest seen, which a tick marks on every bar. The colour is
    the verdict in FP16; bars of q are pale; a cross marks what is unstable, a diamond an FP32 island.
    """
    drawn = panels(certificate)
    low, high = _limits([site for _, sites in drawn for site in sites])

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(drawn), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for number, (axes, (title, sites)) in enumerate(zip(rows, drawn, strict=True)):
            _frame(axes, low, high, number)
            _bars(axes, sites, low, number)
            axes.set_title(_said(title, sites), loc="left", fontsize=8, color=INK)
        name_blocks(rows[-1], [site.name for site in drawn[0][1]])

    said = "; ".join(_said(title, sites) for title, sites in drawn)
    alt = f"sum of squares of {len(certificate.sites)} XNorms in network order against the limits of FP16: {said}"
    return draw("xnorm", (7.4, 0.7 + 2.1 * len(drawn)), alt, paint)


def _said(title: str, sites: tuple[SiteCertificate, ...]) -> str:
    islands = sum(site.island for site in sites)
    counts = f"{verdict_counts(sites, 'fp16')} in FP16" + (f"; {islands} in FP32 islands" if islands else "")
    return f"{title}: {counts}" if title else counts


def _limits(sites: list[SiteCertificate]) -> tuple[float, float]:
    """Ends of the axis, in powers of two: everything drawn, and the limits of FP16."""
    values = [x for s in sites for x in (s.sum_sq_min, s.sum_sq_max, s.bound_sum_sq) if x]
    values += [limit for limit, _ in _LIMITS]
    return math.floor(math.log2(min(values))) - 2.0, math.ceil(math.log2(max(values))) + 4.0


def _frame(axes: Axes, low: float, high: float, panel: int) -> None:
    """The axis of powers of two, and what FP16 cannot hold."""
    largest, _, smallest = (math.log2(limit) for limit, _ in _LIMITS)
    axes.axhspan(largest, high, color=BAD, alpha=0.1, linewidth=0)
    axes.axhspan(low, smallest, color=BAD, alpha=0.1, linewidth=0)
    for i, (limit, name) in enumerate(_LIMITS):
        y = math.log2(limit)
        line = axes.axhline(y, color=MUTED if i == 1 else BAD, linewidth=0.9, linestyle=":" if i == 1 else "-")
        line.set_gid(f"limit{panel}-{i}")
        axes.text(1.01, y, name, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=MUTED)
    axes.set(ylim=(low, high), ylabel="sum of a²")
    axes.yaxis.set_major_locator(MultipleLocator(8 if high - low < 72 else 16))
    axes.yaxis.set_major_formatter(lambda y, _: "2" + f"{y:.0f}".translate(_SUPERSCRIPTS))
    axes.grid(axis="y")
    axes.tick_params(length=0)


def _bars(axes: Axes, sites: tuple[SiteCertificate, ...], low: float, panel: int) -> None:
    for i, site in enumerate(sites):
        verdict = site.verdicts["fp16"].verdict
        colour, certified = _COLOURS[verdict], site.bound_sum_sq is not None
        bottom, top = _log2(site.sum_sq_min, low), _log2(site.bound_sum_sq if certified else site.sum_sq_max, low)
        bar = Rectangle(
            (i - 0.36, bottom),
            0.72,
            top - bottom,
            facecolor=colour if certified else "none",
            edgecolor="none" if certified else colour,
            alpha=_STRENGTH[site.operand],
        )
        bar.set_gid(f"bar{panel}-{i}")
        axes.add_patch(bar)
        if verdict == "unstable":
            _mark(axes, (i, top), "x", BAD, f"cross{panel}-{i}")
        if site.island:
            _mark(axes, (i, top), "D", ACCENT, f"island{panel}-{i}")
    seen = [(i, _log2(site.sum_sq_max, low)) for i, site in enumerate(sites) if site.sum_sq_max]
    ticks = axes.hlines([y for _, y in seen], [i - 0.45 for i, _ in seen], [i + 0.45 for i, _ in seen], color=INK, linewidth=1)
    ticks.set_gid(f"seen{panel}")
    axes.set_xlim(-0.8, len(sites) - 0.2)


def _mark(axes: Axes, end: tuple[float, float], marker: str, colour: str, gid: str) -> None:
    """A mark above the end of a bar."""
    (mark,) = axes.plot([end[0]], [end[1] + 2.0], marker=marker, markersize=3.5, color=colour)
    mark.set_gid(gid)


def name_blocks(axes: Axes, names: list[str]) -> None:
    """Name the blocks of the network below the bars, and part them by lines."""
    starts = [i for i, name in enumerate(names) if i == 0 or block_of(name) != block_of(names[i - 1])]
    spaced: list[int] = []
    for start in starts:
        if not spaced or start - spaced[-1] >= len(names) / _NAMED:
            spaced.append(start)
    axes.set_xticks(spaced, [shorten(block_of(names[i]), 16) for i in spaced], rotation=90, ha="center")
    for each in axes.figure.axes:
        for start in starts[1:]:
            each.axvline(start - 0.5, color=LINE, linewidth=0.4)


def _log2(value: float | None, low: float) -> float:
    """Where a value stands on the axis; zero and what is not known at its foot."""
    return math.log2(value) if value else low
