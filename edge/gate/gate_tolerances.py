"""How much a rebuild may lose against its baseline: the defaults of `ufovit gate --update`, each with its reason.

**Samples.** Two honest builds of one network (other calibration images, another library release) answer a few images
differently, those between two classes. If the baseline answers k of its N images otherwise than FP32, and a rebuild does so
independently and as often, which is the worst case, then of n images at most 2 r n change between the two, r the rate behind
k / N. Their net loss has a standard deviation of at most sqrt(2 r n), and the upper end of its 95 % interval lies 1.96 of them
higher. With r the upper Wilson limit of k / N, because k is a draw too,

    noise(n) = Z sqrt(2 r n + FEW) / n

is exceeded by that upper end in fewer than one of 20,000 such rebuilds, at every rate, on all images and on subsets (a test
sums the probabilities). A loss beyond it fails with evidence, a loss near it is inconclusive. On a subset of the baseline's
images the tolerance grows as noise does. Answers are a coarse measure; the SQNR row sees what costs few of them.

**Everything else** is a function of its inputs, so that its tolerance is small: what other inputs of the same kind may move.
"""

from __future__ import annotations

import math

import numpy as np

from edge.drift.drop_interval import wilson_limits
from edge.gate.baseline import Identity, Measured, Origin, Tolerance
from edge.tasks.classification.logit_metrics import Floats

Z, FEW = 6.5, 4.0
LEAST_POINTS = 0.1
SQNR_DB = 2.0
SQNR_DEVIATIONS = 4.0
SQNR_MATTERS_DB = 100.0
"""Beyond what FP32 itself keeps over a network of some hundred layers: whether it is 110 or "identical" says nothing."""
SCALE_BITS = 0.6
SCALE_MEAN_BITS = 0.045
REFERENCE_POINTS = 0.1
REFERENCE_IMAGES = 2
HEADROOM_BITS = 2.25
FLOOR_BITS = 4.25
SHARE = {"trt": 0.01}
SHARE_ELSEWHERE = 5e-6
SIZE = {"trt": 0.10}
SIZE_ELSEWHERE = 0.05
LATENCY = 0.10
_TIMED = "TensorRT chooses kernels by timing them, so that two builds"


def noise_points(images: int, changed: int, of: int) -> float:
    """What honest rebuilds may lose of n images if the baseline changed k of N, in points; formula at the top of this file."""
    rate = float(wilson_limits(changed, of)[1])
    return 100.0 * Z * math.sqrt(2 * rate * images + FEW) / images


def default_tolerances(identity: Identity, origin: Origin, measured: Measured) -> dict[str, Tolerance]:
    """A tolerance for every quantity of a build that has one; points, dB, bits, shares, or relative for size and latency."""
    changed = round((1 - measured.agreement) * identity.images)
    points = math.ceil(100 * max(LEAST_POINTS, noise_points(identity.images, changed, identity.images))) / 100
    sample = (
        f"Exceeded, interval included, in fewer than one of 20,000 rebuilds if each changes {changed} of {identity.images} "
        f"answers independently, which is the worst case."
    )
    timed = origin.backend in SHARE
    return {
        "reference": Tolerance(
            REFERENCE_POINTS,
            "FP32 of another release adds in another order: only answers that were tied to five digits change.",
        ),
        "accuracy": Tolerance(points, sample),
        "agreement": Tolerance(points, sample),
        "sqnr": Tolerance(
            SQNR_DB,
            "Other calibration images, 128 at a time, moved it by up to 1.3 dB in 200 rebuilds of the shipped network, each "
            "judged on 1,000 images.",
        ),
        "scale_largest": Tolerance(
            SCALE_BITS,
            "Other calibration images, 128 at a time, moved no scale of the shipped network by more than 0.50 bits; twice as "
            "large is one bit.",
        ),
        "scale_mean": Tolerance(
            SCALE_MEAN_BITS,
            "Other calibration images, 128 at a time, moved the shipped network's by up to 0.036 bits in 200 rebuilds; eight "
            "images move them further.",
        ),
        "xnorm_headroom": Tolerance(
            HEADROOM_BITS, "Other images may move the exponent of a fold by one, which is two bits of a sum of squares."
        ),
        "xnorm_floor": Tolerance(
            FLOOR_BITS, "One step of a fold's exponent, two bits, and the smallest vector of other images, two bits more."
        ),
        "share": Tolerance(
            SHARE.get(origin.backend, SHARE_ELSEWHERE),
            f"{_TIMED} may hide a small layer in a generated kernel."
            if timed
            else "The same graph and library give the same layers whatever the scales; this is less than the smallest layer.",
        ),
        "size": Tolerance(
            SIZE.get(origin.backend, SIZE_ELSEWHERE),
            f"{_TIMED} hold kernels of other sizes."
            if timed
            else "Builds from other calibration images differ by 1 to 2 %; a layer stored twice or in another type adds more.",
        ),
        "latency": Tolerance(
            LATENCY, "Clocks and temperature move a ratio taken in turn by some percent; a lost INT8 kernel more."
        ),
    }


QUANTITIES = frozenset((
    "reference", "accuracy", "agreement", "sqnr", "scale_largest", "scale_mean", "xnorm_headroom", "xnorm_floor", "share",
    "size", "latency",
))  # fmt: skip
"""What has a tolerance. The two verdicts have none: they are absolute."""


def sqnr_deviation_db(reference: Floats, engine: Floats) -> float:
    """Standard deviation of the SQNR of n images as an estimate of that of all, in dB; logits (n, classes), finite.

    With s and e the energies of an image's signal and error, SQNR = 10 log10(sum s / sum e), and to first order
    the variance of ln(sum s / sum e) is var(s / mean s - e / mean e) / n. 0 where nothing differs.
    """
    signal = np.square(reference.astype(np.float64)).sum(1)
    error = np.square(engine.astype(np.float64) - reference).sum(1)
    if not signal.any() or not error.any():
        return 0.0
    relative = signal / signal.mean() - error / error.mean()
    return float(10 / np.log(10) * relative.std() / np.sqrt(len(relative)))
