"""Bias correction: the mean that quantization adds to a layer's outputs is taken back by its bias.

    correction = E[x] W - E[x'] W'        x' quantized inputs, W' quantized weights

(Nagel et al., "Data-free quantization through weight equalization and bias correction", arXiv 1906.04721; here the means are
those of the calibration images.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calib.refine.input_moments import Moments

Float64 = NDArray[np.float64]


def correction(moments: Moments, matrix: Float64, quantized: Float64) -> Float64:
    """What to add to each output channel, (G * N,).

    Args:
        moments: of the layer's inputs.
        matrix: (G, K, N) float weights.
        quantized: (G, K, N) what they are once quantized and dequantized.
    """
    exact = np.einsum("gk,gkm->gm", moments.mean, matrix)
    found = np.einsum("gk,gkm->gm", moments.quantized_mean, quantized)
    return np.asarray((exact - found).reshape(-1))
