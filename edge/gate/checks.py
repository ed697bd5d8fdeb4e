"""Compare the quantities that every task has with their baseline, one gate row each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge.drift.drift_report import DriftReport
from edge.gate.baseline import Baseline, LatencyRatio, Scales, XNormMargins
from edge.gate.scale_changes import compare_scales, incomparable, not_quantized
from edge.stability.verdict import STABILITIES
from edge.tasks.gate_row import Measurement, Result, Row, is_number, listed, missing_row, row, skipped_row

SCALE_QUANTITIES = ("scale_largest", "scale_mean")
_XNORM_QUANTITIES = ("xnorm_verdict", "xnorm_headroom", "xnorm_floor")


def own_verdict(drift: DriftReport) -> Row:
    """The build's own verdict against FP32, whatever the baseline."""
    why = "The accuracy budget is absolute: a baseline may not soften it."
    return Row("verdict", drift.verdict, "", drift.verdict, "pass", None, None, why, drift.reason)


@dataclass(frozen=True)
class Rows:
    """The rows of one comparison."""

    baseline: Baseline

    def scales(self, before: Scales | None, now: Scales | None) -> Iterator[Row]:
        """The scale that changed most, and the mean change of the activations' scales."""
        if before is None or (why := incomparable(before, now)):
            why = "the baseline has no scales" if before is None else why
            yield from (skipped_row(name, why) for name in SCALE_QUANTITIES)
            return
        if now is None or (gone := not_quantized(before, now)):
            what = "the build has no quantized graph" if now is None else f"no longer quantized: {listed(gone)}"
            yield from (missing_row(name, what) for name in SCALE_QUANTITIES)
            return
        activations, weights, remark = compare_scales(before, now)
        every = activations | weights
        name, change = max(every.items(), key=lambda item: abs(item[1]), default=("", 0.0))
        most = f"{name} is {2.0**change:.2f} times the baseline's, of {len(every)} scales the most"
        yield self._scale("scale_largest", abs(change), (most if change else f"none of {len(every)} scales has moved") + remark)
        mean = float(np.mean(np.abs(list(activations.values())))) if activations else 0.0
        detail = f"mean change of {len(activations)} activations' scales, up or down{remark}"
        yield self._scale("scale_mean", mean, detail)

    def xnorm(self, before: XNormMargins | None, now: XNormMargins | None) -> Iterator[Row]:
        """The certificate's verdict, then the XNorm that lost most headroom and the one that lost most floor."""
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
        yield self._margin("xnorm_headroom", before, now, "headroom_bits")
        yield self._margin("xnorm_floor", before, now, "floor_bits")

    def share(self, now: float, fallbacks: tuple[str, ...]) -> Row:
        """Share of the multiply-accumulates that run in the precision of the build."""
        if not is_number(now):
            return missing_row("share", f"the receipt states {now}")
        before, tolerance = self.baseline.measured.share, self.baseline.tolerances["share"].tolerance
        loss = before - now
        texts = f"{before:.2%}", f"{now:.2%}", f"{100 * tolerance:g} points lost"
        detail = f"{100 * loss:+.2f} points of the multiply-accumulates lost"
        if loss > tolerance:
            detail += f"; heaviest fallbacks: {listed(fallbacks)}"
        return self._row("share", Measurement(loss <= tolerance, texts, loss, detail))

    def size(self, now: int) -> Row:
        """Growth of the engine file."""
        before, tolerance = self.baseline.measured.engine_bytes, self.baseline.tolerances["size"].tolerance
        loss = now / before - 1 if before else math.inf
        texts = f"{before / 1e6:.2f} MB", f"{now / 1e6:.2f} MB", f"{tolerance:+.0%}"
        return self._row("size", Measurement(loss <= tolerance, texts, loss, f"{loss:+.2%} bytes"))

    def latency(self, now: LatencyRatio | None) -> Row:
        """Latency ratio to FP32, by its confidence interval."""
        before = self.baseline.measured.latency
        if before is None:
            why = "the baseline holds none; --update --latency FILE records one" if now else "measured in neither build"
            return skipped_row("latency", why)
        if now is None:
            return missing_row("latency", "the baseline holds a latency ratio and none was given: --latency FILE")
        most = before.high * (1 + self.baseline.tolerances["latency"].tolerance)
        result: Result = "pass" if now.high <= most else "fail" if now.low > most else "inconclusive"
        detail = f"{now.ratio:.3f} [{now.low:.3f}, {now.high:.3f}] of FP32's time over {now.runs} pairs, {most:.3f} allowed"
        texts = f"{before.ratio:.3f} [{before.low:.3f}, {before.high:.3f}]", f"{now.ratio:.3f}", f"{most:.3f}"
        return self._row("latency", Measurement(result, texts, now.ratio / before.ratio - 1, detail))

    def _scale(self, quantity: str, bits: float, detail: str) -> Row:
        tolerance = self.baseline.tolerances[quantity].tolerance
        texts = "", f"{bits:.3f} bits", f"{tolerance:g} bits moved"
        return self._row(quantity, Measurement(bits <= tolerance, texts, bits, detail))

    def _margin(self, quantity: str, before: XNormMargins, now: XNormMargins, field: str) -> Row:
        pairs = {name: (getattr(margin, field), getattr(now.sites[name], field)) for name, margin in before.sites.items()}
        missing = [name for name, (was, bits) in pairs.items() if was is not None and not is_number(bits)]
        if missing:
            return missing_row(quantity, f"not a number: {listed(missing)}")
        known = {name: pair for name, pair in pairs.items() if None not in pair}
        if not known:
            return skipped_row(quantity, "the baseline has no such margin")
        name, (was, bits) = max(known.items(), key=lambda item: item[1][0] - item[1][1])
        tolerance = self.baseline.tolerances[quantity].tolerance
        texts = f"{was:.1f} bits", f"{bits:.1f} bits", f"{tolerance:g} bits lost"
        detail = f"{name}: {was - bits:+.2f} bits lost, the most"
        return self._row(quantity, Measurement(was - bits <= tolerance, texts, was - bits, detail))

    def _row(self, quantity: str, measurement: Measurement) -> Row:
        return row(quantity, self.baseline.tolerances[quantity], measurement)
