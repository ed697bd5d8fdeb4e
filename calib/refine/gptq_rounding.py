"""GPTQ: refit weights to the quantized inputs of a layer and round them so that their errors cancel on these inputs.

A layer that computes x W in float gets x' instead, quantized by itself and by everything before it. With H = E[x'^T x'] and
D = E[x'^T (x - x')] over the calibration images, the weights whose outputs are closest to x W are

    W* = W + (H + damping)^-1 D W                                                   `refit`

Following GPTQ (Frantar et al., arXiv 2210.17323), the rows of W* are then rounded one after the other, largest H_kk first, and
the effect of a row's rounding on the outputs is compensated by the rows not rounded yet. With H^-1 = U^T U, U upper triangular:

    e = (w_k - q_k) / U_kk        W_j -= U_kj e   for the rows j > k                 `round_matrix`

The result is a float weight on the grid of its own per-channel scale, so that quantizing it changes nothing. For that the
largest element of each output channel is rounded to exactly 127 steps, except where the scale is the smallest allowed.
"""

import numpy as np
from numpy.typing import NDArray

from calib.scales import QMAX, SMALLEST_SCALE, weight_scales

Float64 = NDArray[np.float64]

DAMPING, FEW = 0.01, 2.0
"""Added to the diagonal of H, relative to its mean: DAMPING + FEW * K / n for n patches of length K. Few patches estimate rare
directions badly, and a head after a pooling gets one patch per image.
"""
_BLOCK = 64


def refit(matrix: Float64, gram: Float64, cross: Float64, count: int) -> Float64:
    """W* of a weight (G, K, N); gram and cross are (G, K, K)."""
    return np.asarray(matrix + np.linalg.solve(_damped(gram, count), cross @ matrix))


def round_matrix(matrix: Float64, gram: Float64, count: int, tensor: str) -> Float64:
    """The weight (G, K, N) rounded to its grid; gram is (G, K, K), the mean over `count` patches; `tensor` is for errors."""
    groups, rows, columns = matrix.shape
    steps = weight_scales(np.abs(matrix).max(axis=1).reshape(-1), tensor).astype(np.float64).reshape(groups, 1, columns)
    order = np.argsort(-np.diagonal(gram, axis1=1, axis2=2), axis=1, kind="stable")  # (G, K)
    upper = _upper_of_inverse(_damped(gram, count), order)
    work = np.take_along_axis(matrix, order[:, :, None], axis=1)
    largest = np.where(steps[:, 0] > SMALLEST_SCALE, np.abs(work).argmax(axis=1), -1)  # (G, N): the row that spans the range
    rounded = np.empty_like(work)
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        errors = np.empty((groups, stop - start, columns))
        for k in range(start, stop):
            row = work[:, k]
            levels = np.clip(np.rint(row / steps[:, 0]), -QMAX, QMAX)
            levels = np.where(largest == k, np.copysign(QMAX, row), levels)
            rounded[:, k] = levels * steps[:, 0]
            error = (row - rounded[:, k]) / upper[:, k, k, None]
            errors[:, k - start] = error
            work[:, k + 1 : stop] -= upper[:, k, k + 1 : stop, None] * error[:, None]
        work[:, stop:] -= upper[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    result = np.empty_like(rounded)
    np.put_along_axis(result, order[:, :, None], rounded, axis=1)
    return result


def _damped(gram: Float64, count: int) -> Float64:
    relative = DAMPING + FEW * gram.shape[1] / count
    mean = np.diagonal(gram, axis1=1, axis2=2).mean(axis=1)
    damping = np.where(mean > 0, relative * mean, 1.0)
    return np.asarray(gram + damping[:, None, None] * np.eye(gram.shape[1]))


def _upper_of_inverse(gram: Float64, order: NDArray[np.intp]) -> Float64:
    """U with inverse(H) = U^T U, in the order of rounding."""
    ordered = np.take_along_axis(np.take_along_axis(gram, order[:, :, None], axis=1), order[:, None, :], axis=2)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(ordered)).transpose(0, 2, 1))
