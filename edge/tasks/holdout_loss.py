"""The loss by quantization on held-out images in a few lines, for `ufovit calibrate`, which takes any graph. numpy alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.calibration_table import MIN_IMAGES
from calib.metrics import sqnr_db, top1_agreement
from edge.tasks.constant_outputs import why_constant
from edge.tasks.task import Outputs

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Loss:
    """The loss by quantization: lines for the console, and the outputs that cannot be judged."""

    lines: tuple[str, ...]
    undefined: tuple[str, ...]


def measure_loss(
    names: Sequence[str], reference: Outputs, answers: Outputs, labels: NDArray[np.int64] | None, images: str
) -> Loss:
    """Compare every output (n, ...) of the INT8 graph with that of the float graph on the same n images.

    SQNR of each output, equal values of one of integers; for logits (n, classes) also agreement and, with labels (n,), accuracy
    of the first output. An output that is the same for every image has neither: 0 of nothing was lost. `images` names them.
    """
    lines, undefined = [], []
    for name, before, after in zip(names, reference, answers, strict=True):
        label = name if len(names) > 1 else "logits" if before.ndim == 2 else "output"
        if why := why_constant(before):
            undefined.append(name)
            said = f"not judged: the float graph's output is {why}: SQNR and agreement are undefined"
        else:
            said = f"{_comparison(before, after)} on {images}"
        lines.append(f"{label:<12} {said}")
    if labels is not None:
        accuracies = (float(np.mean(side[0].argmax(1) == labels)) for side in (reference, answers))
        lines.append("top-1        {:.2%} float, {:.2%} INT8".format(*accuracies))
    count = len(reference[0])
    if count < MIN_IMAGES:
        lines.append(
            f"warning      {count} images judge: too few for a figure to rely on, one is {1 / count:.0%} of the agreement"
        )
    return Loss(tuple(lines), tuple(undefined))


def _comparison(before: Array, after: Array) -> str:
    if before.dtype.kind in "iub":
        return f"{np.mean(before == after):.2%} of the values equal"
    sqnr = sqnr_db(before, after)
    text = f"SQNR {sqnr:.1f} dB" if np.isfinite(sqnr) else "no difference in any value: SQNR is infinite"
    return f"{text}, agreement {top1_agreement(before, after):.2%}" if before.ndim == 2 else text
