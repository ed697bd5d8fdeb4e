"""Compare the quantities that every task has with their baseline, one gate row each."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from edge.gate.baseline import Baseline, LatencyRatio, Scales, StepFigures, XNormMargins
from edge.gate.build_figures import BuildFigures
from edge.gate.gate_tolerances import STEP_QUANTITIES
from edge.gate.network_checks import network_rows
from edge.gate.scale_changes import compare_scales, incomparable, not_quantized
from edge.stability.verdict import STABILITIES
from edge.tasks.gate_row import Measurement, Result, Row, Tolerance, is_number, listed, missing_row, row, skipped_row

Tolerances = Mapping[str, Tolerance]


def common_rows(baseline: Baseline, build: BuildFigures, latency: LatencyRatio | None) -> Iterator[Row]:
    """Rows for scales, XNorms, the whole network's certificate, share, size, steps and latency."""
    before, now, tolerances = baseline.measured, build.measured, baseline.tolerances
    yield from _scales(before.scales, now.scales, tolerances)
    yield from _xnorm(before.xnorm, now.xnorm, tolerances)
    yield from network_rows(before.network, now.network, tolerances)
    yield _share(before.share, now.share, build.fallbacks, tolerances["share"])
    yield _size(before.engine_bytes, now.engine_bytes, tolerances["size"])
    yield from _steps(before.steps, now.steps, tolerances)
    yield _latency(before.latency, latency, tolerances["latency"])


def _scales(before: Scales | None, now: Scales | None, tolerances: Tolerances) -> Iterator[Row]:
    """The scale that changed most, and the mean change of the activations' scales."""
    if before is None or (why := incomparable(before, now)):
        why = "the baseline has no scales" if before is None else why
        yield from (skipped_row(name, why) for name in ("scale_largest", "scale_mean"))
        return
    if now is None or (gone := not_quantized(before, now)):
        what = "the build has no quantized graph" if now is None else f"no longer quantized: {listed(gone)}"
        yield from (missing_row(name, what) for name in ("scale_largest", "scale_mean"))
        return
    activations, weights, remark = compare_scales(before, now)
    every = activations | weights
    name, change = max(every.items(), key=lambda item: abs(item[1]), default=("", 0.0))
    most = f"{name} is {2.0**change:.2f} times the baseline's, of {len(every)} scales the most"
    most = most if change else f"none of {len(every)} scales has moved"
    yield _scale("scale_largest", abs(change), most + remark, tolerances)
    mean = float(np.mean(np.abs(list(activations.values())))) if activations else 0.0
    detail = f"mean change of {len(activations)} activations' scales, up or down{remark}"
    yield _scale("scale_mean", mean, detail, tolerances)


def _xnorm(before: XNormMargins | None, now: XNormMargins | None, tolerances: Tolerances) -> Iterator[Row]:
    """The certificate's verdict, then the XNorm that lost most headroom and the one that lost most floor."""
    names = ("xnorm_verdict", "xnorm_headroom", "xnorm_floor")
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
    yield _margin("headroom", before, now, tolerances)
    yield _margin("floor", before, now, tolerances)


def _share(before: float, now: float, fallbacks: tuple[str, ...], tolerance: Tolerance) -> Row:
    """Share of the multiply-accumulates that run in the precision of the build."""
    if not is_number(now):
        return missing_row("share", f"the receipt states {now}")
    loss = before - now
    texts = f"{before:.2%}", f"{now:.2%}", f"{100 * tolerance.tolerance:g} points lost"
    detail = f"{100 * loss:+.2f} points of the multiply-accumulates lost"
    if loss > tolerance.tolerance:
        detail += f"; heaviest fallbacks: {listed(fallbacks)}"
    return row("share", tolerance, Measurement(loss <= tolerance.tolerance, texts, loss, detail))


def _size(before: int, now: int, tolerance: Tolerance) -> Row:
    """Growth of the engine file."""
    loss = now / before - 1 if before else math.inf
    texts = f"{before / 1e6:.2f} MB", f"{now / 1e6:.2f} MB", f"{tolerance.tolerance:+.0%}"
    return row("size", tolerance, Measurement(loss <= tolerance.tolerance, texts, loss, f"{loss:+.2%} bytes"))


def _steps(before: StepFigures | None, now: StepFigures | None, tolerances: Tolerances) -> Iterator[Row]:
    """Numbers of steps, all and of those that only move or convert, and the bytes moved; fewer pass."""
    if before is None or now is None:
        why = "the engine does not report its steps" if now is None else "the baseline has none; --update records them"
        make_row = skipped_row if before is None else missing_row
        yield from (make_row(name, why) for name in sorted(STEP_QUANTITIES))
        return
    for name in ("steps", "reformats", "pads"):
        more = getattr(now, name) - getattr(before, name)
        loss, allowed = more / max(before.steps, 1), f"{tolerances[name].tolerance:.1%} of {before.steps} steps more"
        texts = f"{getattr(before, name)}", f"{getattr(now, name)}", allowed
        passed = loss <= tolerances[name].tolerance
        yield row(name, tolerances[name], Measurement(passed, texts, loss, f"{more:+d} in one inference"))
    loss = now.moved_bytes / before.moved_bytes - 1 if before.moved_bytes else math.inf
    tolerance = tolerances["moved_bytes"]
    texts = f"{before.moved_bytes / 1e6:.2f} MB", f"{now.moved_bytes / 1e6:.2f} MB", f"{tolerance.tolerance:+.0%}"
    yield row(
        "moved_bytes", tolerance, Measurement(loss <= tolerance.tolerance, texts, loss, f"{loss:+.2%} bytes for one image")
    )


def _latency(before: LatencyRatio | None, now: LatencyRatio | None, tolerance: Tolerance) -> Row:
    """Latency ratio to FP32, by its confidence interval."""
    if before is None:
        why = "the baseline holds none; --update --latency FILE records one" if now else "measured in neither build"
        return skipped_row("latency", why)
    if now is None:
        return missing_row("latency", "the baseline holds a latency ratio and none was given: --latency FILE")
    most = before.high * (1 + tolerance.tolerance)
    result: Result = "pass" if now.high <= most else "fail" if now.low > most else "inconclusive"
    detail = f"{now.ratio:.3f} [{now.low:.3f}, {now.high:.3f}] of FP32's time over {now.runs} pairs, {most:.3f} allowed"
    texts = f"{before.ratio:.3f} [{before.low:.3f}, {before.high:.3f}]", f"{now.ratio:.3f}", f"{most:.3f}"
    return row("latency", tolerance, Measurement(result, texts, now.ratio / before.ratio - 1, detail))


def _scale(quantity: str, bits: float, detail: str, tolerances: Tolerances) -> Row:
    tolerance = tolerances[quantity]
    texts = "", f"{bits:.3f} bits", f"{tolerance.tolerance:g} bits moved"
    return row(quantity, tolerance, Measurement(bits <= tolerance.tolerance, texts, bits, detail))


def _margin(name: str, before: XNormMargins, now: XNormMargins, tolerances: Tolerances) -> Row:
    quantity, field = f"xnorm_{name}", f"{name}_bits"
    pairs = {site: (getattr(margin, field), getattr(now.sites[site], field)) for site, margin in before.sites.items()}
    missing = [site for site, (was, bits) in pairs.items() if was is not None and not is_number(bits)]
    if missing:
        return missing_row(quantity, f"not a number: {listed(missing)}")
    known = {site: pair for site, pair in pairs.items() if None not in pair}
    if not known:
        return skipped_row(quantity, "the baseline has no such margin")
    site, (was, bits) = max(known.items(), key=lambda item: item[1][0] - item[1][1])
    tolerance = tolerances[quantity]
    texts = f"{was:.1f} bits", f"{bits:.1f} bits", f"{tolerance.tolerance:g} bits lost"
    detail = f"{site}: {was - bits:+.2f} bits lost, the most"
    return row(quantity, tolerance, Measurement(was - bits <= tolerance.tolerance, texts, was - bits, detail))
