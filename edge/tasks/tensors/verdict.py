"""Judge outputs that were compared as numbers: every output against the budget, by its confidence interval.

Pass when the whole interval meets the budget, fail when none of it does, inconclusive otherwise. numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.tasks.budget import MIN_SQNR_DB, Budget
from edge.tasks.constant_outputs import ZERO
from edge.tasks.interval import Verdict, level_text
from edge.tasks.tensors.compare import DECIBELS, OutputFigures, TensorComparison
from edge.tasks.tensors.ratio_interval import MIN_IMAGES, images_to_decide

_ORDER: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
_LISTED = 3


@dataclass(frozen=True)
class Finding:
    """The verdict on one output by one figure, in one sentence; `margin` is what it exceeds the budget by, in dB."""

    output: str
    verdict: Verdict
    sentence: str
    margin: float


@dataclass(frozen=True)
class _Bound:
    """A figure, the ends of its interval (None: there is none), and the least that is allowed."""

    what: str
    value: float | None
    low: float | None
    high: float | None
    needed: float
    cosine: bool

    def text(self, value: float) -> str:
        """A value of the figure with its unit."""
        return f"{value:.5f}" if self.cosine else f"{value:.1f} dB"

    def loss(self, value: float) -> float:
        """ln(1 - cosine), or ln(noise / signal)."""
        return (math.log(1 - value) if value < 1 else -math.inf) if self.cosine else -value / DECIBELS


def least_sqnr_db(budget: Budget) -> float | None:
    """The least SQNR that a budget allows; the default where it names no figure of this task."""
    return MIN_SQNR_DB if budget.sqnr_db is None and budget.cosine is None else budget.sqnr_db


def judge_output(figures: OutputFigures, budget: Budget, comparison: TensorComparison) -> Finding:
    """The worst finding of one output of a comparison, whose engine is finite on all images."""
    sqnr, cosine = least_sqnr_db(budget), budget.cosine
    bounds = (
        [_Bound("SQNR", figures.sqnr_db, figures.sqnr_low_db, figures.sqnr_high_db, sqnr, False)] if sqnr is not None else []
    )
    if cosine is not None:
        bounds.append(_Bound("mean cosine", figures.cosine_mean, figures.cosine_low, figures.cosine_high, cosine, True))
    findings = [_judge(figures, bound, comparison) for bound in bounds]
    return min(findings, key=lambda finding: (_ORDER.index(finding.verdict), finding.margin))


def _judge(figures: OutputFigures, bound: _Bound, comparison: TensorComparison) -> Finding:
    name, value, images = figures.name, bound.value, comparison.images
    cannot = f"output {name!r} cannot be judged: the reference's is {figures.constant}"
    if value is None or figures.constant == ZERO:
        return Finding(name, "inconclusive", cannot, -math.inf)
    equal = figures.equal
    margin = math.inf if equal else DECIBELS * (bound.loss(bound.needed) - bound.loss(value))
    measured, needed = f"{bound.what} of {name!r} {bound.text(value)}", f"{bound.text(bound.needed)} needed"
    if images < MIN_IMAGES or bound.low is None or bound.high is None:
        few = f"{measured}, {needed}: {images} images are too few for an interval, at least {MIN_IMAGES} are needed"
        return Finding(name, "inconclusive", few, margin)
    sentence = (
        f"{measured}, {level_text(comparison.level)} interval [{bound.text(bound.low)}, {bound.text(bound.high)}], {needed}"
    )
    if equal:
        sentence = f"{name!r} is equal on both sides"
    if bound.high < bound.needed:
        return Finding(name, "fail", sentence, margin)
    if figures.constant:
        return Finding(name, "inconclusive", cannot, margin)
    if bound.low >= bound.needed:
        return Finding(name, "pass", sentence, margin)
    width = bound.loss(bound.low) - bound.loss(value)
    count = images_to_decide(images, width, abs(margin) / DECIBELS)
    more = "and no number of images would: it equals the budget" if count is None else f"about {count:,} would"
    return Finding(name, "inconclusive", f"{sentence}: {images} images do not decide it, {more}", margin)


def judge(comparison: TensorComparison, budget: Budget) -> tuple[Verdict, str]:
    """The verdict on all outputs, and its reason: the outputs that decide it, the worst first."""
    if comparison.not_finite:
        broken = ", ".join(figures.name for figures in comparison.outputs if figures.not_finite)
        return "fail", f"{comparison.not_finite} of {comparison.images} engine outputs hold NaN or Inf: {broken}"
    if comparison.images < MIN_IMAGES:
        return "inconclusive", f"{comparison.images} images are too few to judge by: an interval needs {MIN_IMAGES} or more"
    if all(figures.equal and not figures.constant for figures in comparison.outputs):
        return "pass", f"every output is equal on both sides, on all of {comparison.images} images"
    findings = [judge_output(figures, budget, comparison) for figures in comparison.outputs]
    findings.sort(key=lambda finding: (_ORDER.index(finding.verdict), finding.margin))
    verdict = findings[0].verdict
    deciding = [finding for finding in findings if finding.verdict == verdict]
    if verdict == "pass":
        rest = len(findings) - 1
        others = "the other output is" if rest == 1 else f"the {rest} other outputs are"
        more = f"; {others} further within the budget" if rest else ""
        return verdict, findings[0].sentence + more
    more = f"; and {len(deciding) - _LISTED} outputs more" if len(deciding) > _LISTED else ""
    return verdict, "; ".join(finding.sentence for finding in deciding[:_LISTED]) + more
