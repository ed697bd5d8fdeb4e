"""One row per quantity: how each is held against its baseline, and what the row says of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge.drift.compare import DriftReport
from edge.drift.drop_interval import Paired, decide, drop_interval
from edge.gate.baseline import Baseline, LatencyRatio, Margin, Quantity, Scales, XNormMargins
from edge.gate.gate_tolerances import REFERENCE_IMAGES, SQNR_DEVIATIONS, SQNR_MATTERS_DB, noise_points, sqnr_deviation_db
from edge.gate.scale_changes import changes, incomparable, not_quantized
from edge.tasks.classification.logit_metrics import Floats, Int64

Result = Literal["pass", "fail", "inconclusive", "skipped"]
Bools = npt.NDArray[np.bool_]
SCALE_QUANTITIES: tuple[Quantity, ...] = ("scale_largest", "scale_mean")
_STABILITY = ("stable", "at risk", "unstable")
_LISTED = 5


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        baseline, measured, allowed: for a person.
        loss: what was lost, in the unit of the tolerance, None where that is no number.
        tolerance: how much may be lost, None for what is absolute or skipped.
        reason: why that much.
        detail: one sentence on what was found.
    """

    quantity: Quantity
    result: Result
    baseline: str
    measured: str
    allowed: str
    loss: float | None
    tolerance: float | None
    reason: str
    detail: str


class Rows:
    """Makes the rows of one comparison on n images."""

    def __init__(self, baseline: Baseline, images: int) -> None:
        self.before, self.tolerances, self.images = baseline.measured, baseline.tolerances, images
        of = baseline.identity.images
        changed = round((1 - baseline.measured.agreement) * of)
        self.wider = noise_points(images, changed, of) / noise_points(of, changed, of)
        self.whole = images == of

    def own_verdict(self, drift: DriftReport) -> Row:
        """The build's own verdict against FP32, which no baseline softens."""
        why = "The accuracy budget is absolute: a baseline may not soften it."
        return Row("verdict", drift.verdict, "", drift.verdict, "pass", None, None, why, drift.reason)

    def reference(self, before: Int64, now: Int64) -> Row:
        """The FP32 answers themselves, so that an export that went wrong does not hide behind agreement with itself."""
        tolerance = self.tolerances["reference"].tolerance
        changed = int((before != now).sum())
        most = max(REFERENCE_IMAGES, math.floor(tolerance / 100 * self.images)) if tolerance else 0
        detail = f"{changed} of {self.images} FP32 answers are not the baseline's"
        return self._row(
            "reference", changed <= most, ("", str(changed), f"{most} changed"), 100 * changed / self.images, detail
        )

    def unlabelled(self, now: bool, before: bool) -> Row:
        """Accuracy where one side has no labels: missing from the build is a failure."""
        if before and not now:
            return self._missing("accuracy", "the baseline has labels, the build's images have none")
        return self.skipped("accuracy", "the baseline's images have no labels: agreement bounds what is lost")

    def paired(self, quantity: Quantity, before: Bools, now: Bools, stated: float | None) -> Row:
        """A share of right answers (n,) on both sides, image by image."""
        if not _finite(stated):
            return self._missing(quantity, f"the build states {stated}")
        counts = [int((a & b).sum()) for a, b in ((before, now), (before, ~now), (~before, now), (~before, ~now))]
        paired = Paired(*counts)
        interval = drop_interval(paired)
        allowed = self.tolerances[quantity].tolerance * self.wider
        lost, won = paired.flips.right_to_wrong, paired.flips.wrong_to_right
        loss = 100 * (lost - won) / self.images
        ends = f"{interval.level:.0%} interval [{interval.low_points:+.2f}, {interval.high_points:+.2f}]"
        detail = f"{lost} images lost, {won} won: {loss:+.2f} points lost, {ends}, {allowed:.2f} allowed"
        texts = f"{before.mean():.2%}", f"{now.mean():.2%}", f"{allowed:.2f} points lost"
        return self._row(quantity, decide(interval, allowed), texts, loss, detail, allowed)

    def sqnr(self, now: float, reference: Floats, engine: Floats) -> Row:
        """SQNR of the logits (n, classes); on a subset of the images its own spread is allowed too."""
        if not _finite(now):
            return self._missing("sqnr", f"the build states {now}")
        allowed = self.tolerances["sqnr"].tolerance
        good = np.isfinite(engine).all(1)
        if not self.whole and good.any():
            allowed += SQNR_DEVIATIONS * sqnr_deviation_db(reference[good], engine[good])
        loss = min(self.before.sqnr_db, SQNR_MATTERS_DB) - min(now, SQNR_MATTERS_DB)
        texts = f"{self.before.sqnr_db:.1f} dB", f"{now:.1f} dB", f"{allowed:.1f} dB lost"
        return self._row("sqnr", loss <= allowed, texts, loss, f"{loss:+.2f} dB lost", allowed)

    def scales(self, before: Scales | None, now: Scales | None) -> Iterator[Row]:
        """The scale that moved most, and how far the activations' moved on the whole."""
        if before is None or (why := incomparable(before, now)):
            why = "the baseline has no scales" if before is None else why
            yield from (self.skipped(name, why) for name in SCALE_QUANTITIES)
            return
        if now is None or (gone := not_quantized(before, now)):
            what = "the build has no quantized graph" if now is None else f"not quantized any more: {_listed(gone)}"
            yield from (self._missing(name, what) for name in SCALE_QUANTITIES)
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
        names: tuple[Quantity, ...] = ("xnorm_verdict", "xnorm_headroom", "xnorm_floor")
        if before is None:
            yield from (self.skipped(name, "the baseline has no certificate: its precision needs none") for name in names)
            return
        gone = "no certificate" if now is None else _listed(sorted(before.sites.keys() - now.sites.keys()))
        if now is None or gone:
            yield from (self._missing(name, f"missing: {gone}") for name in names)
            return
        worse = _STABILITY.index(now.verdict) > _STABILITY.index(before.verdict)
        texts = before.verdict, now.verdict, before.verdict
        why = "A certificate that got worse is a defect, whatever the images."
        detail = f"{before.verdict} became {now.verdict}" if worse else f"{now.verdict}, {len(now.sites)} XNorms"
        yield Row("xnorm_verdict", "fail" if worse else "pass", *texts, None, None, why, detail)
        yield self._margin("xnorm_headroom", _pairs(before, now, "headroom_bits"))
        yield self._margin("xnorm_floor", _pairs(before, now, "floor_bits"))

    def share(self, now: float, fallbacks: tuple[str, ...]) -> Row:
        """Share of the multiply-accumulates in the precision of the build."""
        if not _finite(now):
            return self._missing("share", f"the receipt states {now}")
        loss, tolerance = self.before.share - now, self.tolerances["share"].tolerance
        texts = f"{self.before.share:.2%}", f"{now:.2%}", f"{100 * tolerance:g} points lost"
        detail = f"{100 * loss:+.2f} points of the multiply-accumulates lost"
        if loss > tolerance:
            detail += f"; heaviest not so: {_listed(fallbacks)}"
        return self._row("share", loss <= tolerance, texts, loss, detail)

    def size(self, now: int) -> Row:
        """Engine bytes, growth alone."""
        loss = now / self.before.engine_bytes - 1 if self.before.engine_bytes else math.inf
        tolerance = self.tolerances["size"].tolerance
        texts = f"{self.before.engine_bytes / 1e6:.2f} MB", f"{now / 1e6:.2f} MB", f"{tolerance:+.0%}"
        return self._row("size", loss <= tolerance, texts, loss, f"{loss:+.2%} bytes")

    def latency(self, now: LatencyRatio | None) -> Row:
        """The engine's time in units of FP32's, by its interval."""
        before = self.before.latency
        if before is None:
            given = (
                "the baseline holds none; --update --latency FILE records one"
                if now
                else "not measured, neither here nor there"
            )
            return self.skipped("latency", given)
        if now is None:
            return self._missing("latency", "the baseline holds a latency ratio and none was given: --latency FILE")
        most = before.high * (1 + self.tolerances["latency"].tolerance)
        result: Result = "pass" if now.high <= most else "fail" if now.low > most else "inconclusive"
        detail = f"{now.ratio:.3f} [{now.low:.3f}, {now.high:.3f}] of FP32's time over {now.runs} pairs, {most:.3f} allowed"
        texts = f"{before.ratio:.3f} [{before.low:.3f}, {before.high:.3f}]", f"{now.ratio:.3f}", f"{most:.3f}"
        return self._row("latency", result, texts, now.ratio / before.ratio - 1, detail)

    def skipped(self, quantity: Quantity, why: str) -> Row:
        """A quantity that neither side can have."""
        return Row(quantity, "skipped", "", "", "", None, None, "", why)

    def _missing(self, quantity: Quantity, what: str) -> Row:
        return Row(quantity, "fail", "", "missing", "", None, None, "What is missing cannot have passed.", what)

    def _moved(self, quantity: Quantity, bits: float, detail: str) -> Row:
        tolerance = self.tolerances[quantity].tolerance
        texts = "", f"{bits:.3f} bits", f"{tolerance:g} bits moved"
        return self._row(quantity, bits <= tolerance, texts, bits, detail)

    def _margin(self, quantity: Quantity, pairs: dict[str, tuple[float | None, float | None]]) -> Row:
        lacking = [name for name, (was, now) in pairs.items() if was is not None and not _finite(now)]
        if lacking:
            return self._missing(quantity, f"no number: {_listed(lacking)}")
        known = {name: (was, now) for name, (was, now) in pairs.items() if was is not None and now is not None}
        if not known:
            return self.skipped(quantity, "the baseline has no such margin")
        name, (was, now) = max(known.items(), key=lambda item: item[1][0] - item[1][1])
        tolerance = self.tolerances[quantity].tolerance
        texts = f"{was:.1f} bits", f"{now:.1f} bits", f"{tolerance:g} bits lost"
        return self._row(quantity, was - now <= tolerance, texts, was - now, f"{name}: {was - now:+.2f} bits lost, the most")

    def _row(  # one parameter per part of a row
        self,
        quantity: Quantity,
        result: Result | bool,
        texts: tuple[str, str, str],
        loss: float,
        detail: str,
        tolerance: float | None = None,
    ) -> Row:
        entry = self.tolerances[quantity]
        said: Result = ("pass" if result else "fail") if isinstance(result, bool) else result
        allowed = entry.tolerance if tolerance is None else tolerance
        return Row(quantity, said, *texts, loss if math.isfinite(loss) else None, allowed, entry.reason, detail)


def _pairs(before: XNormMargins, now: XNormMargins, field: str) -> dict[str, tuple[float | None, float | None]]:
    def of(margin: Margin) -> float | None:
        value: float | None = getattr(margin, field)
        return value

    return {name: (of(margin), of(now.sites[name])) for name, margin in before.sites.items()}


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
