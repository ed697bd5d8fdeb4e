"""Default tolerances of `ufovit gate --update` for the answers of a classification, each with its reason.

Two correct builds of one network (other calibration images, another library release) answer a few images differently, those
between two classes. If the baseline answers k of its N images otherwise than FP32, and a rebuild does so independently and as
often, which is the worst case, then of n images at most 2 r n change between the two, r the true rate estimated by k / N. Their
net loss has a standard deviation of at most sqrt(2 r n), and the upper end of its 95 % interval lies 1.96 of them higher. With
r the upper Wilson limit of k / N, because k is a sample too,

    noise(n) = Z sqrt(2 r n + FEW) / n

is exceeded by that upper end in fewer than one of 20,000 such rebuilds, at every rate, on all images and on subsets (a test
sums the probabilities). A loss beyond it fails, a loss near it is inconclusive. On a subset of the baseline's images the
tolerance grows as the noise does. Answers are a coarse measure; the SQNR row detects errors that change few of them.
"""

import math

import numpy as np

from edge.tasks.classification.logit_metrics import Floats
from edge.tasks.gate_row import Tolerance
from edge.tasks.interval import wilson_limits

QUANTITIES = ("reference", "accuracy", "agreement", "sqnr")
Z, FEW = 6.5, 4.0
LEAST_POINTS = 0.1
SQNR_DB = 2.0
SQNR_DEVIATIONS = 4.0
SQNR_MATTERS_DB = 100.0
"""Above this, which is more than FP32 keeps over some hundred layers, differences in SQNR have no meaning."""
REFERENCE_POINTS = 0.1
REFERENCE_IMAGES = 2


def noise_points(images: int, changed: int, of: int) -> float:
    """Loss in points that a correct rebuild may show on n images if the baseline changed k of N; formula at the top."""
    rate = float(wilson_limits(changed, of)[1])
    return 100.0 * Z * math.sqrt(2 * rate * images + FEW) / images


def default_tolerances(agreement: float, images: int) -> dict[str, Tolerance]:
    """A tolerance for each of QUANTITIES: points, for the SQNR dB. `agreement` is the baseline's, on `images` images."""
    changed = round((1 - agreement) * images)
    points = math.ceil(100 * max(LEAST_POINTS, noise_points(images, changed, images))) / 100
    sample = (
        f"Exceeded, interval included, in fewer than one of 20,000 rebuilds if each changes {changed} of {images} "
        "answers independently, which is the worst case."
    )
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
    }


def sqnr_deviation_db(reference: Floats, engine: Floats) -> float:
    """Standard deviation in dB of the SQNR of n images as an estimate of that of all; logits (n, classes), finite.

    With s and e the energies of an image's signal and error, SQNR = 10 log10(sum s / sum e), and to first order
    the variance of ln(sum s / sum e) is var(s / mean s - e / mean e) / n. 0 where nothing differs.
    """
    signal = np.square(reference.astype(np.float64)).sum(1)
    error = np.square(engine.astype(np.float64) - reference).sum(1)
    if not signal.any() or not error.any():
        return 0.0
    relative = signal / signal.mean() - error / error.mean()
    return float(10 / np.log(10) * relative.std() / np.sqrt(len(relative)))
