"""Summary of the loss by quantization on held-out images: for `ufovit calibrate`, which takes any graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from calib.metrics import sqnr_db, top1_agreement
from edge.tasks.classification.logit_metrics import Floats, Int64


def holdout_lines(reference: Floats, engine: Floats, labels: Int64 | None, images: str) -> Iterator[str]:
    """SQNR of outputs (n, ...), for logits (n, classes) also agreement and, with labels (n,), accuracy.

    `images` describes the images.
    """
    classifies = reference.ndim == 2
    agreement = f", agreement {top1_agreement(reference, engine):.2%}" if classifies else ""
    yield f"{'logits' if classifies else 'output'}       SQNR {sqnr_db(reference, engine):.1f} dB{agreement} on {images}"
    if labels is not None:
        before, after = (float(np.mean(side.argmax(1) == labels)) for side in (reference, engine))
        yield f"top-1        {before:.2%} float, {after:.2%} INT8"
