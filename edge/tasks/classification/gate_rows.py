"""Gate rows of a classification: answers are compared with the baseline's, image by image."""

import math
from dataclasses import dataclass

import numpy as np

from edge.tasks.classification import gate_tolerances as limits
from edge.tasks.classification.drop_interval import Paired, drop_interval
from edge.tasks.classification.logit_metrics import Bools, Int64
from edge.tasks.classification.logits import Logits, answers, unpack_answers
from edge.tasks.gate_row import Measurement, Row, is_number, missing_row, row, skipped_row
from edge.tasks.interval import decide
from edge.tasks.task import GateRequest


def baseline_answers(request: GateRequest, classes: int, side: str) -> Int64:
    """Answers of one side ("reference", "engine") to all images of the baseline. Raises ArtifactError if unreadable."""
    return unpack_answers(request.before.answers[side], classes, request.before_images)


@dataclass(frozen=True)
class AnswerRows:
    """Compares the answers of a request, whose outputs are these logits, with the baseline's."""

    request: GateRequest
    logits: Logits

    def reference(self) -> Row:
        """The FP32 answers themselves: an engine may agree with an FP32 graph that was exported wrongly."""
        tolerance, images = self.request.tolerances["reference"], len(self.request.chosen)
        changed = int((self._before("reference") != answers(self.logits.reference)).sum())
        most = max(limits.REFERENCE_IMAGES, math.floor(tolerance.tolerance / 100 * images)) if tolerance.tolerance else 0
        texts = "", str(changed), f"{most} changed"
        detail = f"{changed} of {images} FP32 answers are not the baseline's"
        return row("reference", tolerance, Measurement(changed <= most, texts, 100 * changed / images, detail))

    def accuracy(self) -> Row:
        """Accuracy; labels that the baseline has and the build lacks are a failure."""
        labels, labelled_before = self.logits.labels, self.request.before.figures["top1"] is not None
        if labels is None and labelled_before:
            return missing_row("accuracy", "the baseline has labels, the build's images have none")
        if labels is None or not labelled_before:
            return skipped_row("accuracy", "the baseline's images have no labels: agreement bounds what is lost")
        if self.request.random_weights:
            return skipped_row("accuracy", "random weights have no accuracy to lose")
        now = _right(answers(self.logits.engine), labels)
        return self._paired("accuracy", self._before("engine") == labels, now, "top1")

    def agreement(self) -> Row:
        """Share of answers equal to those of the FP32 reference."""
        now = _right(answers(self.logits.engine), answers(self.logits.reference))
        return self._paired("agreement", self._before("engine") == self._before("reference"), now, "agreement")

    def _paired(self, quantity: str, before: Bools, now: Bools, figure: str) -> Row:
        """Judge the change of a share of right answers, bool (n,), by the confidence interval of what was lost."""
        stated = self.request.now.figures[figure]
        if not is_number(stated):
            return missing_row(quantity, f"the build states {stated}")
        paired, tolerance = Paired.of(before, now), self.request.tolerances[quantity]
        interval, flips = drop_interval(paired), paired.flips
        allowed = tolerance.tolerance * self._sampling_factor()
        lost, won = flips.right_to_wrong, flips.wrong_to_right
        loss = 100 * (lost - won) / paired.images
        ends = f"{interval.level:.0%} interval [{interval.low_points:+.2f}, {interval.high_points:+.2f}]"
        detail = f"{lost} images lost, {won} won: {loss:+.2f} points lost, {ends}, {allowed:.2f} allowed"
        texts = f"{before.mean():.2%}", f"{now.mean():.2%}", f"{allowed:.2f} points lost"
        return row(quantity, tolerance, Measurement(decide(interval, allowed), texts, loss, detail, allowed))

    def sqnr(self) -> Row:
        """SQNR of the logits (n, classes); on a subset of the images its sampling deviation is allowed too."""
        before, now, tolerance = self._figure("sqnr_db"), self.request.now.figures["sqnr_db"], self.request.tolerances["sqnr"]
        if now is None or not math.isfinite(now):
            return missing_row("sqnr", f"the build states {now}")
        reference, engine, allowed = self.logits.reference, self.logits.engine, tolerance.tolerance
        finite = np.isfinite(engine).all(1)
        if len(self.request.chosen) != self.request.before_images and finite.any():
            allowed += limits.SQNR_DEVIATIONS * limits.sqnr_deviation_db(reference[finite], engine[finite])
        loss = min(before, limits.SQNR_MATTERS_DB) - min(now, limits.SQNR_MATTERS_DB)
        texts = f"{before:.1f} dB", f"{now:.1f} dB", f"{allowed:.1f} dB lost"
        return row("sqnr", tolerance, Measurement(loss <= allowed, texts, loss, f"{loss:+.2f} dB lost", allowed))

    def _sampling_factor(self) -> float:
        """Factor by which tolerances of samples are wider on the images chosen than on all images of the baseline."""
        of = self.request.before_images
        changed = round((1 - self._figure("agreement")) * of)
        return limits.noise_points(len(self.request.chosen), changed, of) / limits.noise_points(of, changed, of)

    def _before(self, side: str) -> Int64:
        return baseline_answers(self.request, self.logits.reference.shape[1], side)[self.request.chosen]

    def _figure(self, name: str) -> float:
        value = self.request.before.figures[name]
        return math.nan if value is None else value


def _right(answer: Int64, truth: Int64) -> Bools:
    right: Bools = (answer == truth) & (answer >= 0)
    return right
