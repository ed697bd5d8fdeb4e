"""The network drawn from its input to its outputs: a bar per tensor against what 16 bits hold, on an axis of powers of two.

Of more than LARGEST tensors, neighbours share a bar: it spans all of them and has the colour of the worst.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from edge.report.range_tables import NAMED_BLOCKS, block_of
from edge.stability.float_formats import BF16, FP16
from edge.stability.verdict import STABILITIES, Stability, worst
from edge.tasks.report_parts import shorten

if TYPE_CHECKING:
    from edge.stability.network_certificate import NetworkCertificate, QuantityRecord, SiteRecord, TensorRecord

LARGEST = 400
"""Bars that a page's width shows apart."""
LONGEST_NAME = 90
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960.0, 330.0, 52.0, 132.0, 8.0, 84.0
LOWEST = -34.0
"""Lower end of the axis, 2^-34: everything below is zero in FP16. BF16 goes on to 2^-126."""
HIGHEST = 40.0
"""What lies above, such as the -3e38 of a mask, is drawn to the upper end of the axis."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Range:
    """What a tensor, or a quantity inside an operator, spans.

    Attributes:
        low: smallest magnitude observed other than zero; None without any.
        seen: largest observed.
        bound: for every input; None where nothing is known. It is a proof where FP16 holds it.
        verdict: in FP16, of the sites that it belongs to.
    """

    low: float | None
    seen: float
    bound: float | None
    verdict: Stability

    @property
    def proven(self) -> bool:
        """Whether no input overflows in FP16."""
        return self.bound is not None and self.bound <= FP16.largest

    @property
    def high(self) -> float:
        """Where the bar ends: at the bound where it decides the verdict, else at the largest observed."""
        decides = self.bound is not None and (self.proven or self.verdict != "stable")
        return max(self.bound or 0.0, self.seen) if decides else self.seen


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: of the tensor, or a quantity in words; of several neighbours that of the largest.
        block: of the network, where it stands.
        range: its span.
        before: that before the repair, where that was another.
        held: whether 16 bits hold it, or FP32 does.
        members: tensors that share the bar.
    """

    name: str
    block: str
    range: Range
    before: Range | None = None
    held: bool = True
    members: int = 1

    @property
    def title(self) -> str:
        """What a reader sees when pointing at it."""
        r, lines = self.range, [shorten(self.name, LONGEST_NAME)]
        lines += [f"and {self.members - 1} more, this one the largest"] if self.members > 1 else []
        low = "" if r.low is None else f"{r.low:.3g} to "
        lines.append(f"observed {low}{r.seen:.4g}")
        lines.append("no bound" if r.bound is None else f"at most {r.bound:.4g} for every input")
        lines.append(f"{r.verdict}{'' if self.held else ', computed in FP32'}")
        if self.before is not None:
            lines.append(f"before the repair up to {self.before.high:.4g}: {self.before.verdict}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Drawing:
    """The bars with the geometry of the SVG: `y` maps a magnitude, `x` the number of a bar, to pixels."""

    bars: tuple[Bar, ...]
    tensors: int

    @cached_property
    def top(self) -> float:
        """Upper end of the axis as a power of two."""
        spans = [r for bar in self.bars for r in (bar.range, bar.before) if r is not None]
        return min(HIGHEST, max(20.0, math.ceil(max((_log2(r.high) for r in spans), default=0.0)) + 2.0))

    @property
    def pitch(self) -> float:
        """Width of a bar with its gap."""
        return (WIDTH - LEFT - RIGHT) / max(len(self.bars), 1)

    def x(self, number: int) -> float:
        """Left end of a bar's place."""
        return round(LEFT + self.pitch * number, 2)

    def y(self, value: float | None) -> float:
        """Height of a magnitude; zero and what lies below the axis at its lower end."""
        return self.level(_log2(value or 0.0))

    def level(self, exponent: float) -> float:
        """Height of a power of two."""
        share = (min(max(exponent, LOWEST), self.top) - LOWEST) / (self.top - LOWEST)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Heights and names of the axis's powers of two."""
        exponents = range(math.ceil(LOWEST / 8) * 8, math.floor(self.top) + 1, 8)
        return [(self.level(e), f"2{e}".replace(str(e), str(e).translate(_SUPERSCRIPTS), 1)) for e in exponents]

    @property
    def limits(self) -> list[tuple[float, str, Literal["bad", "muted"]]]:
        """Heights, names and colours of what FP16 and BF16 hold; those beyond the axis are named at its ends."""
        return [
            (self.y(FP16.largest), f"{FP16.largest:g} FP16 ends", "bad"),
            (self.y(FP16.smallest_normal), "2⁻¹⁴ FP16 normal", "muted"),
            (self.y(FP16.smallest_subnormal), "2⁻²⁴ FP16 subnormal", "bad"),
            (self.y(BF16.largest), "2¹²⁸ BF16 ends ↑", "muted"),
            (self.y(BF16.smallest_normal), "2⁻¹²⁶ BF16 normal ↓", "muted"),
        ]

    @property
    def blocks(self) -> list[tuple[float, str]]:
        """Where blocks of the network start, and their names; "" where the drawing has no room for one."""
        starts, last = [], -math.inf
        for block, group in groupby(enumerate(self.bars), lambda item: item[1].block):
            number = next(group)[0]
            room = number - last >= len(self.bars) / NAMED_BLOCKS
            last = number if room else last
            starts.append((self.x(number), shorten(block, 14) if room else ""))
        return starts

    @property
    def alt(self) -> str:
        """The drawing in words."""
        verdicts = [bar.range.verdict for bar in self.bars]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in STABILITIES if verdict in verdicts)
        proven = sum(bar.range.proven for bar in self.bars)
        return f"{self.tensors} tensors in graph order in {len(self.bars)} bars: {counts}; {proven} proven for every input"


def drawing(certificate: NetworkCertificate) -> Drawing:
    """The bars of a certificate in graph order, at most LARGEST."""
    bars = _bars(certificate)
    return Drawing(tuple(_merged(bars)), len(bars))


def _bars(certificate: NetworkCertificate) -> list[Bar]:
    """A bar for each stored tensor, and for what 16 bits hold inside an operator, after the tensors of its site."""
    sites = _sites_of_tensors(certificate.sites)
    before = {q.tensor or q.name: _range(site, q) for site in certificate.before for q in site.quantities}
    bars, inner = list[Bar](), _inside(certificate, before)
    for tensor in certificate.tensors:
        bars.append(_tensor_bar(tensor, sites.get(tensor.name, ()), before))
        bars += inner.pop(tensor.name, ())
    return bars + [bar for rest in inner.values() for bar in rest]


def _tensor_bar(tensor: TensorRecord, held: Sequence[tuple[SiteRecord, QuantityRecord]], before: Mapping[str, Range]) -> Bar:
    verdict = worst([site.verdicts["fp16"].verdict for site, _ in held])
    span = Range(tensor.observed_min, tensor.observed_max, tensor.certified_max, verdict)
    in_16_bits = any(quantity.computed_in == "fp16" for _, quantity in held) or not held
    return Bar(tensor.name, block_of(tensor.name), span, _unless_equal(before.get(tensor.name), span), in_16_bits)


def _inside(certificate: NetworkCertificate, before: Mapping[str, Range]) -> dict[str, list[Bar]]:
    """Last stored tensor of a site -> bars of what 16 bits hold inside its operators; "" for a site without a tensor."""
    order = {tensor.name: number for number, tensor in enumerate(certificate.tensors)}
    found: dict[str, list[Bar]] = {}
    for site in certificate.sites:
        stored = [quantity.tensor for quantity in site.quantities if quantity.tensor in order]
        last, bars = max(stored, key=order.__getitem__, default=""), []
        for quantity in site.quantities:
            if not quantity.tensor and quantity.computed_in == "fp16":
                span = _range(site, quantity)
                bars.append(Bar(quantity.name, block_of(last), span, _unless_equal(before.get(quantity.name), span)))
        if bars:
            found.setdefault(last, []).extend(bars)
    return found


def _sites_of_tensors(sites: Sequence[SiteRecord]) -> dict[str, list[tuple[SiteRecord, QuantityRecord]]]:
    """Tensor -> the sites that hold it."""
    found: dict[str, list[tuple[SiteRecord, QuantityRecord]]] = {}
    for site in sites:
        for quantity in site.quantities:
            if quantity.tensor:
                found.setdefault(quantity.tensor, []).append((site, quantity))
    return found


def _range(site: SiteRecord, quantity: QuantityRecord) -> Range:
    verdict = site.verdicts["fp16"].verdict
    return Range(quantity.observed_min, quantity.observed_max, quantity.certified_max, verdict)


def _unless_equal(before: Range | None, now: Range) -> Range | None:
    return None if before == now else before


def _merged(bars: Sequence[Bar]) -> list[Bar]:
    """At most LARGEST bars: equally many neighbours share one."""
    size = math.ceil(len(bars) / LARGEST) if bars else 1
    return [_joined(bars[start : start + size]) for start in range(0, len(bars), size)]


def _joined(bars: Sequence[Bar]) -> Bar:
    if len(bars) == 1:
        return bars[0]
    first = max(bars, key=lambda bar: (STABILITIES.index(bar.range.verdict), bar.range.high))
    earlier = [bar.before or bar.range for bar in bars] if any(bar.before for bar in bars) else []
    before = _span(earlier) if earlier else None
    return replace(
        first,
        block=bars[0].block,
        range=_span([bar.range for bar in bars]),
        before=before,
        held=any(bar.held for bar in bars),
        members=len(bars),
    )


def _span(ranges: Sequence[Range]) -> Range:
    """The range that holds all of some; proven only if each is."""
    low = min((r.low for r in ranges if r.low is not None), default=None)
    bounds = [r.bound for r in ranges if r.bound is not None]
    bound = max(bounds) if len(bounds) == len(ranges) else None
    return Range(low, max(r.seen for r in ranges), bound, worst([r.verdict for r in ranges]))


def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else -math.inf
