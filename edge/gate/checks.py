"""One row per quantity that every task has: how each is compared with its baseline, and what the row says of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from edge.drift.drift_report import DriftReport
from edge.gate.baseline import Baseline, LatencyRatio, Margin, Scales, XNormMargins
from edge.gate.scale_changes import changes, incomparable, not_quantized
from edge.stability.verdict import STABILITIES
from edge.tasks.gate_row import Measurement, Result, Row, is_number, listed, missing_row, row, skipped_row

SCALE_QUANTITIES = ("scale_largest", "scale_mean")
_XNORM_QUANTITIES = ("xnorm_verdict", "xnorm_headroom", "xnorm_floor")


def own_verdict(drift: DriftReport) -> Row:
    """The build's own verdict against FP32, which no baseline softens."""
    why = "The accuracy budget is absolute: a baseline may not soften it."
    return Row("verdict", drift.verdict, "", drift.verdict, "pass", None, None, why, drift.reason)


@dataclass(frozen=True)
class Rows:
    """Makes the rows of one comparison."""

    baseline: Baseline

    def scales(self, before: Scales | None, now: Scales | None) -> Iterator[Row]:
        """The scale that moved most, and how far the activations' moved on the whole."""
        if before is None or (why := incomparable(before, now)):
            why = "the baseline has no scales" if before is None else why
            yield from (skipped_row(name, why) for name in SCALE_QUANTITIES)
            return
        if now is None or (gone := not_quantized(before, now)):
            what = "the build has no quantized graph" if now is None else f"not quantized any more: {listed(gone)}"
            yield from (missing_row(name, what) for name in SCALE_QUANTITIES)
            return
        moved = changes(before, now)
        name, change = moved.largest
        most = f"{name} is {2.0**change:.2f} times the baseline's, of {moved.count} scales the most"
        said = (most if change else f"none of {moved.count} scales has moved") + moved.remark
        yield self._moved("scale_largest", abs(change), said)
        said = f"mean change of {len(moved.activations)} activations' scales, up or down{moved.remark}"
        yield self._moved("scale_mean", moved.mean, said)

    def xnorm(self, before: XNormMargins | None, now: XNormMargins | None) -> Iterator[Row]:
        """The certificate's verdict, then the site that lost most headroom and the one that lost most floor."""
        names = _XNORM_QUANTITIES
        if before is None:
            yield from (skipped_row(name, "the baseline has no certificate: its precision needs none") for name in names)
            return
        gone = "no certificate" if now is None else listed(sorted(before.sites.keys() - now.sites.keys()))
        if now is None or gone:
            yield from (missing_row(name, f"missing: {gone}") for name in names)
            return
        worse = STABILITIES.index(now.verdict) > STABILITIES.index(before.verdict)
        texts = before.verdict, now.verdict, before.verdict
        why = "A certificate that got worse is a defect, whatever the images."
        detail = f"{before.verdict} became {now.verdict}" if worse else f"{now.verdict}, {len(now.sites)} XNorms"
        yield Row("xnorm_verdict", "fail" if worse else "pass", *texts, None, None, why, detail)
        yield self._margin("xnorm_headroom", _pairs(before, now, "headroom_bits"))
        yield self._margin("xnorm_floor", _pairs(before, now, "floor_bits"))

    def share(self, now: float, fallbacks: tuple[str, ...]) -> Row:
        """Share of the multiply-accumulates in the precision of the build."""
        if not is_number(now):
            return missing_row("share", f"the receipt states {now}")
        before, tolerance = self.baseline.measured.share, self.baseline.tolerances["share"].tolerance
        loss = before - now
        texts = f"{before:.2%}", f"{now:.2%}", f"{100 * tolerance:g} points lost"
        detail = f"{100 * loss:+.2f} points of the multiply-accumulates lost"
        if loss > tolerance:
            detail += f"; heaviest not so: {listed(fallbacks)}"
        return self._row("share", Measurement(loss <= tolerance, texts, loss, detail))

    def size(self, now: int) -> Row:
        """Engine bytes, growth alone."""
        before, tolerance = self.baseline.measured.engine_bytes, self.baseline.tolerances["size"].tolerance
        loss = now / before - 1 if before else math.inf
        texts = f"{before / 1e6:.2f} MB", f"{now / 1e6:.2f} MB", f"{tolerance:+.0%}"
        return self._row("size", Measurement(loss <= tolerance, texts, loss, f"{loss:+.2%} bytes"))

    def latency(self, now: LatencyRatio | None) -> Row:
        """The engine's time in units of FP32's, by its interval."""
        before = self.baseline.measured.latency
        if before is None:
            given = (
                "the baseline holds none; --update --latency FILE records one"
                if now
                else "not measured, neither here nor there"
            )
            return skipped_row("latency", given)
        if now is None:
            return missing_row("latency", "the baseline holds a latency ratio and none was given: --latency FILE")
        most = before.high * (1 + self.baseline.tolerances["latency"].tolerance)
        result: Result = "pass" if now.high <= most else "fail" if now.low > most else "inconclusive"
        detail = f"{now.ratio:.3f} [{now.low:.3f}, {now.high:.3f}] of FP32's time over {now.runs} pairs, {most:.3f} allowed"
        texts = f"{before.ratio:.3f} [{before.low:.3f}, {before.high:.3f}]", f"{now.ratio:.3f}", f"{most:.3f}"
        return self._row("latency", Measurement(result, texts, now.ratio / before.ratio - 1, detail))

    def _moved(self, quantity: str, bits: float, detail: str) -> Row:
        tolerance = self.baseline.tolerances[quantity].tolerance
        texts = "", f"{bits:.3f} bits", f"{tolerance:g} bits moved"
        return self._row(quantity, Measurement(bits <= tolerance, texts, bits, detail))

    def _margin(self, quantity: str, pairs: dict[str, tuple[float | None, float | None]]) -> Row:
        lacking = [name for name, (was, now) in pairs.items() if was is not None and not is_number(now)]
        if lacking:
            return missing_row(quantity, f"no number: {listed(lacking)}")
        known = {name: (was, now) for name, (was, now) in pairs.items() if was is not None and now is not None}
        if not known:
            return skipped_row(quantity, "the baseline has no such margin")
        name, (was, now) = max(known.items(), key=lambda item: item[1][0] - item[1][1])
        tolerance = self.baseline.tolerances[quantity].tolerance
        texts = f"{was:.1f} bits", f"{now:.1f} bits", f"{tolerance:g} bits lost"
        detail = f"{name}: {was - now:+.2f} bits lost, the most"
        return self._row(quantity, Measurement(was - now <= tolerance, texts, was - now, detail))

    def _row(self, quantity: str, found: Measurement) -> Row:
        return row(quantity, self.baseline.tolerances[quantity], found)


def _pairs(before: XNormMargins, now: XNormMargins, field: str) -> dict[str, tuple[float | None, float | None]]:
    def of(margin: Margin) -> float | None:
        value: float | None = getattr(margin, field)
        return value

    return {name: (of(margin), of(now.sites[name])) for name, margin in before.sites.items()}
