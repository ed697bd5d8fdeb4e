"""Outputs of both sides: the file `logits.npz`, and arrays of the reference for a bundle. numpy alone: a device writes it too.

outputs                     int64 (1,), their number
reference_0, engine_0 ...   float32 or integers (n, ...), of each output
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import ArtifactError, DataError
from calib.files import atomic_path
from edge.images.npz import parse_npz
from edge.tasks.task import Outputs, Sides
from edge.tasks.tensors.image_errors import Array, is_integer
from engines.build_folder.safe_files import REMAKE

MOST_OUTPUTS = 256
_SMALL_BYTES = 1 << 28
"""Larger outputs are stored unpacked: maps that are zero nearly everywhere shrink more than a reader believes an archive."""
_REFUSAL = "the outputs cannot be read"


def write_answers(path: Path, sides: Sides) -> None:
    """Write the file, atomically."""
    arrays: dict[str, Any] = {"outputs": np.array([len(sides.reference)], np.int64)}
    arrays |= {f"reference_{i}": output for i, output in enumerate(sides.reference)}
    arrays |= {f"engine_{i}": output for i, output in enumerate(sides.engine)}
    small = sum(array.nbytes for array in arrays.values()) <= _SMALL_BYTES
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        (np.savez_compressed if small else np.savez)(stream, **arrays)


def parse_answers(data: bytes, path: Path) -> Sides:
    """Parse the bytes of the file; errors name `path`. Raises ArtifactError for other bytes or arrays that do not match."""
    count = parse_npz(data, ("outputs",), path, refusal=_REFUSAL, remake=REMAKE)["outputs"]
    if count.shape != (1,) or count.dtype != np.int64 or not 1 <= count[0] <= MOST_OUTPUTS:
        found = f"{count.dtype} {count.shape}"
        raise ArtifactError(_REFUSAL, where=path, found=found, allowed=f"1 to {MOST_OUTPUTS} outputs", next_command=REMAKE)
    names = [f"{side}_{i}" for side in ("reference", "engine") for i in range(int(count[0]))]
    arrays = parse_npz(data, tuple(names), path, refusal=_REFUSAL, remake=REMAKE)
    half = len(names) // 2
    reference, engine = (tuple(arrays[name] for name in part) for part in (names[:half], names[half:]))
    for i, pair in enumerate(zip(reference, engine, strict=True)):
        before, after = pair
        fits = before.ndim and before.size and before.shape == after.shape and len(before) == len(reference[0])
        if not fits or before.dtype != after.dtype or not _is_output(before):
            found = " and ".join(f"{side.dtype} {side.shape}" for side in pair)
            what = "the outputs of both sides do not match"
            raise ArtifactError(what, where=f"{path}, output {i}", found=found, next_command=REMAKE)
    return Sides(reference, engine)


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
