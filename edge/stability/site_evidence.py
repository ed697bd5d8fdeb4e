"""Errors of an XNorm on some images: those of the emulated norm, and what INT8 does to its vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calib.calibrators import mse
from calib.histogram import Histogram
from calib.scales import QMAX
from edge.stability.certificate import Int8Loss
from edge.stability.finders.xnorm import XNormSite
from edge.stability.float_formats import FORMATS, FloatFormat
from edge.stability.fp16_ops import Accumulate, Float32, emulate_product, emulate_xnorm, exact_xnorm, relative_error
from edge.stability.measure_ranges import by_head

_MODES: dict[str, Accumulate] = {"": "storage", "/fp32": "fp32"}


@dataclass(frozen=True)
class SiteEvidence:
    """Errors of a site on the checked images, see the fields of these names in SiteCertificate."""

    errors: dict[str, float | None]
    int8: Int8Loss
    int8_in_front: Int8Loss


def gather_evidence(site: XNormSite, tensors: dict[str, Float32], formats: tuple[str, ...] = tuple(FORMATS)) -> SiteEvidence:
    """Evidence of one site on a batch.

    Args:
        site: with the eps that it has in the graph.
        tensors: its argument, and the factors of "kv".
        formats: those to emulate.
    """
    arrays = [by_head(tensors[name]) for name in (site.factors or (site.argument,))]
    wide = [x.astype(np.float64) for x in arrays]
    argument = wide[0] if site.operand == "q" else wide[0] @ wide[1]
    exact = exact_xnorm(argument, site.axis, site.eps)
    errors = {
        f"{name}{suffix}": _finite(relative_error(_emulated(site, arrays, FORMATS[name], mode), exact))
        for name in formats
        for suffix, mode in _MODES.items()
    }
    unit = exact.astype(np.float32)
    return SiteEvidence(errors, int8_loss(unit, unit, site.axis), int8_loss(argument.astype(np.float32), unit, site.axis))


def int8_loss(tensor: Float32, unit: Float32, axis: int) -> Int8Loss:
    """Errors that symmetric INT8 with one scale for `tensor` causes in its vectors along `axis`, of the directions of `unit`.

    The scale comes from the least squared error, as in a build, and is no larger than max |x| / 127.
    """
    histogram = Histogram("vectors")
    histogram.update(tensor)
    if histogram.amax == 0:
        return Int8Loss(0.0, 0.0, 0.0)
    amax = mse(histogram)
    codes = np.clip(np.rint(tensor * (QMAX / amax)), -QMAX, QMAX)
    alive = np.abs(tensor).max(axis=axis) > 0
    length = np.linalg.norm(codes, axis=axis, keepdims=True)
    moved = np.divide(codes, length, out=np.zeros_like(codes), where=length > 0)
    flat = np.linalg.norm(unit, axis=axis, keepdims=True)  # below 1 where an eps was felt
    direction = np.divide(unit, flat, out=np.zeros_like(unit), where=flat > 0)
    error = np.linalg.norm(moved - direction, axis=axis)
    dead = (length[..., 0] if axis == -1 else length.squeeze(axis)) == 0
    count = max(int(alive.sum()), 1)
    return Int8Loss(
        dead_fraction=float((dead & alive).sum() / count),
        direction_error=float(error[alive].sum() / count),
        clipped_fraction=float((np.abs(tensor) > amax * (1 + 0.5 / QMAX)).mean()),
    )


def _emulated(site: XNormSite, arrays: list[Float32], fmt: FloatFormat, accumulate: Accumulate) -> Float32:
    a = arrays[0] if site.operand == "q" else emulate_product(arrays[0], arrays[1], fmt, accumulate)
    return emulate_xnorm(a, site.axis, fmt, accumulate, site.eps)


def _finite(error: float) -> float | None:
    return error if np.isfinite(error) else None
