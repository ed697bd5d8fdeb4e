"""Outputs of both sides: the file `logits.npz`, and arrays of the reference for a bundle. numpy alone: a device writes it too.

outputs                     int64 (1,), their number
reference_0, engine_0 ...   float32 or integers (n, ...), of each output

or, of outputs that were too large to keep, what was measured of each

images_0 ...                float64 (7, n): signal, noise, cosine, largest, finite, projection, length of every image
output_0 ...                int64: whether of integers, constant (0 no, 1 zero, 2 the same), then the shape (n, ...)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import ArtifactError, DataError
from calib.files import atomic_path
from edge.images.npz import parse_npz
from edge.tasks.constant_outputs import SAME, ZERO
from edge.tasks.task import Int64, Outputs, Sides
from edge.tasks.tensors.image_errors import Array, Float64, ImageErrors, is_integer
from edge.tasks.tensors.measured_output import MeasuredOutput, MeasuredSides
from engines.build_folder.safe_files import REMAKE

MOST_OUTPUTS = 256
_SMALL_BYTES = 1 << 28
"""Larger outputs are stored unpacked: maps that are zero nearly everywhere shrink more than a reader believes an archive."""
_REFUSAL = "the outputs cannot be read"
_IMAGES, _OUTPUT = "images_", "output_"
_CONSTANTS = ("", ZERO, SAME)


def write_answers(path: Path, sides: Sides) -> None:
    """Write the file, atomically."""
    measured = sides.measured if isinstance(sides, MeasuredSides) else ()
    arrays: dict[str, Any] = {"outputs": np.array([len(measured or sides.reference)], np.int64)}
    arrays |= {f"reference_{i}": output for i, output in enumerate(sides.reference)}
    arrays |= {f"engine_{i}": output for i, output in enumerate(sides.engine)}
    for i, output in enumerate(measured):
        arrays |= {f"{_IMAGES}{i}": _per_image(output), f"{_OUTPUT}{i}": _description(output)}
    small = sum(array.nbytes for array in arrays.values()) <= _SMALL_BYTES
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        (np.savez_compressed if small else np.savez)(stream, **arrays)


def parse_answers(data: bytes, path: Path) -> Sides:
    """Parse the bytes of the file; errors name `path`. Raises ArtifactError for other bytes or arrays that do not match."""
    found = parse_npz(data, ("outputs",), path, refusal=_REFUSAL, remake=REMAKE, optional=f"{_IMAGES}0")
    count = found["outputs"]
    if count.shape != (1,) or count.dtype != np.int64 or not 1 <= count[0] <= MOST_OUTPUTS:
        shown = f"{count.dtype} {count.shape}"
        raise ArtifactError(_REFUSAL, where=path, found=shown, allowed=f"1 to {MOST_OUTPUTS} outputs", next_command=REMAKE)
    if f"{_IMAGES}0" in found:
        return _parse_measured(data, path, int(count[0]))
    names = [f"{side}_{i}" for side in ("reference", "engine") for i in range(int(count[0]))]
    arrays = parse_npz(data, tuple(names), path, refusal=_REFUSAL, remake=REMAKE)
    half = len(names) // 2
    reference, engine = (tuple(arrays[name] for name in part) for part in (names[:half], names[half:]))
    for i, pair in enumerate(zip(reference, engine, strict=True)):
        before, after = pair
        fits = before.ndim and before.size and before.shape == after.shape and len(before) == len(reference[0])
        if not fits or before.dtype != after.dtype or not _is_output(before):
            shown = " and ".join(f"{side.dtype} {side.shape}" for side in pair)
            what = "the outputs of both sides do not match"
            raise ArtifactError(what, where=f"{path}, output {i}", found=shown, next_command=REMAKE)
    return Sides(reference, engine)


def _per_image(output: MeasuredOutput) -> Float64:
    errors = output.errors
    numbers = (errors.signal, errors.noise, errors.cosine, errors.largest, errors.finite, output.projection, output.length)
    return np.stack(numbers).astype(np.float64)


def _description(output: MeasuredOutput) -> Int64:
    return np.array([output.integers, _CONSTANTS.index(output.constant), *output.shape], np.int64)


def _parse_measured(data: bytes, path: Path, count: int) -> MeasuredSides:
    names = [f"{kind}{i}" for kind in (_IMAGES, _OUTPUT) for i in range(count)]
    arrays = parse_npz(data, tuple(names), path, refusal=_REFUSAL, remake=REMAKE)
    pairs = [(arrays[f"{_IMAGES}{i}"], arrays[f"{_OUTPUT}{i}"]) for i in range(count)]
    for i, (numbers, about) in enumerate(pairs):
        if not _fit(numbers, about) or numbers.shape != pairs[0][0].shape:
            shown = f"{numbers.dtype} {numbers.shape} and {about.dtype} {about.shape}"
            what = "what was measured of the outputs does not match"
            raise ArtifactError(what, where=f"{path}, output {i}", found=shown, next_command=REMAKE)
    return MeasuredSides((), (), measured=tuple(_measured(*pair) for pair in pairs))


def _fit(numbers: Array, about: Array) -> bool:
    """Whether these can be arrays of `write_answers`."""
    if numbers.dtype != np.float64 or numbers.ndim != 2 or len(numbers) != 7 or not np.isfinite(numbers).all():
        return False
    signal, noise, cosine, largest, finite, _projection, length = numbers
    if about.dtype != np.int64 or about.ndim != 1 or len(about) < 3 or (about[2:] < 1).any() or about[2] != len(signal):
        return False
    positive = all((values >= 0).all() for values in (signal, noise, largest, length))
    flags = np.isin(finite, (0, 1)).all() and about[0] in (0, 1) and 0 <= about[1] < len(_CONSTANTS)
    return bool(positive and flags and (np.abs(cosine) <= 1).all())


def _measured(numbers: Float64, about: Int64) -> MeasuredOutput:
    signal, noise, cosine, largest, finite, projection, length = numbers
    integers, constant, *shape = about.tolist()
    errors = ImageErrors(signal, noise, cosine, largest, finite.astype(np.bool_))
    return MeasuredOutput(tuple(shape), bool(integers), _CONSTANTS[constant], errors, projection, length)


def pack_reference(outputs: Outputs) -> dict[str, Array]:
    """Name -> array of the reference's outputs, for a bundle."""
    return {f"output_{i}": output for i, output in enumerate(outputs)}


def unpack_reference(arrays: Mapping[str, Array], images: int) -> Outputs:
    """The outputs of `pack_reference`. Raises DataError unless they are finite outputs for `images` images."""
    count = sum(name.startswith("output_") for name in arrays)
    outputs = tuple(arrays[f"output_{i}"] for i in range(count) if f"output_{i}" in arrays)
    shapes = ", ".join(f"{output.dtype} {output.shape}" for output in outputs)
    if not 1 <= count <= MOST_OUTPUTS or len(outputs) != count:
        raise DataError(
            "outputs are missing", found=", ".join(sorted(arrays))[:200] or "none", allowed="output_0, output_1 ..."
        )
    if not all(output.ndim and output.size and len(output) == images and _is_output(output) for output in outputs):
        raise DataError("the outputs do not fit", found=shapes, allowed=f"float32 or integers ({images}, ...)")
    if not all(is_integer(output) or np.isfinite(output).all() for output in outputs):
        raise DataError("the FP32 reference answers contain NaN or infinity")
    return outputs


def _is_output(output: Array) -> bool:
    return output.dtype == np.float32 or is_integer(output)
