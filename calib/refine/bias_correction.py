"""Bias correction: compensate the mean error that quantization adds to a layer's outputs in its bias.

    correction = E[x] W - E[x'] W'        x' quantized inputs, W' quantized weights

(Nagel et al., "Data-free quantization through weight equalization and bias correction", arXiv 1906.04721; here the means are
those of the calibration images.)
"""

import numpy as np
from numpy.typing import NDArray

from calib.refine.input_moments import Moments

Float64 = NDArray[np.float64]


def correction(moments: Moments, matrix: Float64, quantized: Float64) -> Float64:
    """(G * N,) to be added to the output channels, from moments of the inputs, float and quantized weights, both (G, K, N)."""
    float_mean = np.einsum("gk,gkm->gm", moments.mean, matrix)
    quantized_mean = np.einsum("gk,gkm->gm", moments.quantized_mean, quantized)
    return np.asarray((float_mean - quantized_mean).reshape(-1))
