"""Gate rows of outputs that are compared as numbers: the errors are compared with the baseline's, image by image.

A baseline keeps three numbers per image and output, in float32 (10,000 images: 150 KiB of text per output):

    error        length of the error vector, the root of the noise of `image_errors`
    distance     1 - cosine
    projection   of the reference's values, see `measured_output`

The reference's outputs themselves would take gigabytes. Both builds saw the same images, so that the energy of the signal
cancels: the loss of SQNR is 10 log10 of the ratio of both sums of noise, over the images that both judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from edge.tasks.gate_row import Measurement, Recorded, Row, Tolerance, missing_row, row, skipped_row
from edge.tasks.packed_arrays import pack_array, unpack_array
from edge.tasks.task import GateRequest, Sides
from edge.tasks.tensors.compare import TensorComparison
from edge.tasks.tensors.image_errors import Float64
from edge.tasks.tensors.measured_output import MeasuredOutput, measure_sides

QUANTITIES = ("reference", "sqnr", "cosine")
LOSS_DB = 2.0
REFERENCE_POINTS, REFERENCE_IMAGES = 0.1, 2
SAME_REFERENCE = 1e-3
"""Largest change of a projection, as a share of the output's length, that counts as the same answer: FP32 of another release
adds in another order, which moves it by about 1e-5; another weight, sign or order moves it by a tenth and more."""
MATTERS = 1e-10
"""Share of the signal below which noise is not counted, 100 dB: more than FP32 keeps over some hundred layers."""


def default_tolerances() -> dict[str, Tolerance]:
    """A tolerance for each of QUANTITIES: points of the images, then decibels."""
    rebuilt = (
        "Other calibration images, 128 at a time, moved the SQNR of the shipped network by up to 1.3 dB in 200 rebuilds; "
        "nothing is known about other networks: rebuild yours to measure it."
    )
    return {
        "reference": Tolerance(REFERENCE_POINTS, "FP32 of another release adds in another order, which moves few outputs."),
        "sqnr": Tolerance(LOSS_DB, rebuilt),
        "cosine": Tolerance(LOSS_DB, f"Decibels of 1 - cosine. {rebuilt}"),
    }


def record(comparison: TensorComparison, sides: Sides) -> Recorded:
    """What a baseline keeps."""
    figures: dict[str, float | None] = {}
    answers: dict[str, str] = {}
    names = tuple(output.name for output in comparison.outputs)
    for output, measured in zip(comparison.outputs, measure_sides(sides, names), strict=True):
        figures |= {f"sqnr_db/{output.name}": output.sqnr_db, f"cosine/{output.name}": output.cosine_mean}
        errors = measured.errors
        arrays = {"error": np.sqrt(errors.noise), "distance": 1 - errors.cosine, "projection": measured.projection}
        answers |= {f"{kind}/{output.name}": pack_array(values, np.float32) for kind, values in arrays.items()}
    return Recorded(figures, answers)


def gate_rows(request: GateRequest, names: tuple[str, ...]) -> Iterator[Row]:
    """A row per quantity and output. Raises ArtifactError for answers of the baseline that cannot be read."""
    for name, output in zip(names, measure_sides(request.sides, names), strict=True):
        errors = output.errors
        yield _reference(request, name, output)
        noise, distance = _before(request, "error", name) ** 2, _before(request, "distance", name)
        yield _loss(request, ("sqnr", "sqnr_db"), name, (noise, errors.noise), MATTERS * errors.signal.sum())
        yield _loss(request, ("cosine", "cosine"), name, (distance, 1 - errors.cosine), MATTERS * len(distance))


def _reference(request: GateRequest, name: str, output: MeasuredOutput) -> Row:
    """The FP32 outputs themselves: an engine may agree with an FP32 graph that was exported wrongly."""
    tolerance, images = request.tolerances["reference"], output.shape[0]
    moved = np.abs(output.projection - _before(request, "projection", name))
    changed = int((moved > SAME_REFERENCE * np.maximum(output.length, 1e-30)).sum())
    most = max(REFERENCE_IMAGES, math.floor(tolerance.tolerance / 100 * images)) if tolerance.tolerance else 0
    detail = f"{changed} of {images} FP32 outputs are not the baseline's"
    found = Measurement(changed <= most, ("", str(changed), f"{most} changed"), 100 * changed / images, detail)
    return row(f"reference of {name}", tolerance, found)


def _loss(request: GateRequest, kind: tuple[str, str], name: str, errors: tuple[Float64, Float64], least: float) -> Row:
    """Loss of SQNR, or of 1 - cosine, in dB; `kind` is quantity and figure.

    `errors` (n,) are noise or distance of the same images in the baseline and now; sums below `least` count as that.
    """
    quantity, figure = kind
    title, tolerance = f"{quantity} of {name}", request.tolerances[quantity]
    before, stated = (recorded.figures.get(f"{figure}/{name}") for recorded in (request.before, request.now))
    if before is None:
        return skipped_row(title, "the baseline could not measure it: its FP32 output is zero")
    if stated is None or not math.isfinite(stated):
        return missing_row(title, f"the build states {stated}")
    before_sum, now_sum = (max(float(values.sum()), least) for values in errors)
    loss = 10 * math.log10(now_sum / before_sum)
    unit = "{:.1f} dB" if quantity == "sqnr" else "{:.5f}"
    texts = unit.format(before), unit.format(stated), f"{tolerance.tolerance:g} dB lost"
    detail = f"{loss:+.2f} dB lost on the same {len(errors[1])} images"
    return row(title, tolerance, Measurement(loss <= tolerance.tolerance, texts, loss, detail))


def _before(request: GateRequest, kind: str, name: str) -> Float64:
    """An array of the baseline, for the images that both judged."""
    packed = request.before.answers.get(f"{kind}/{name}", "")
    values = unpack_array(packed, np.float32, request.before_images, f"numbers of output {name!r}")
    return np.asarray(values[request.chosen], np.float64)
