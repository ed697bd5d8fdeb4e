"""`flips.npz`: small pictures of the images whose answers changed most, written when the drift is measured.

    indices   int64 (k,)     which of the judged images, the worst first; k is 24 at most
    shapes    int64 (k, 2)   height and width of each picture, 64 at most
    pixels    uint8          the pictures (h, w, 3), concatenated

24 pictures take 295 kB before compression. numpy alone: a device writes it too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib.artifact import Artifact
from calib.errors import ArtifactError
from calib.files import atomic_path
from edge.images.npz import parse_npz
from edge.tasks.task import Int64
from engines.build_folder.file_names import PICTURES
from engines.build_folder.safe_files import REMAKE

Uint8 = npt.NDArray[np.uint8]
KEPT = 24
SIDE = 64


@dataclass(frozen=True)
class KeptPictures:
    """Indices (k,) of images whose answer changed, the worst first, and a picture uint8 (h, w, 3) of each."""

    indices: Int64
    pictures: tuple[Uint8, ...]


def picture(pixels: Uint8) -> Uint8:
    """Reduce an image (H, W, C), C 1, 3 or 4, to RGB (h, w, 3) with sides of at most SIDE, by the means of rectangles."""
    colour = np.repeat(pixels, 3, axis=2) if pixels.shape[2] < 3 else pixels[:, :, :3]
    scale = max(1.0, max(colour.shape[:2]) / SIDE)
    sides = [max(1, round(side / scale)) for side in colour.shape[:2]]
    means = colour.astype(np.float64)
    for axis, side in enumerate(sides):
        starts = np.arange(side) * means.shape[axis] // side
        counts = np.diff(np.append(starts, means.shape[axis]))
        means = np.add.reduceat(means, starts, axis=axis) / np.expand_dims(counts, tuple({0, 1, 2} - {axis}))
    return np.rint(means).astype(np.uint8)


def write_pictures(path: Path, indices: Int64, pixels: Callable[[int], Uint8]) -> None:
    """Write `flips.npz`; `pixels` returns image (H, W, C) by index."""
    pictures = [picture(pixels(int(i))) for i in indices]
    shapes = np.array([p.shape[:2] for p in pictures], np.int64).reshape(-1, 2)
    flat = np.concatenate([p.ravel() for p in pictures]) if pictures else np.zeros(0, np.uint8)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, indices=np.asarray(indices, np.int64), shapes=shapes, pixels=flat)


def parse_pictures(data: bytes, path: Path) -> KeptPictures:
    """Parse the bytes of `flips.npz`; errors name `path`. Raises ArtifactError for any other bytes."""
    names = ("indices", "shapes", "pixels")
    arrays = parse_npz(data, names, path, refusal="not a file of flipped images", remake=REMAKE)
    indices, shapes, pixels = (arrays[name] for name in names)
    types = (indices.dtype, shapes.dtype, pixels.dtype) == (np.dtype(np.int64), np.dtype(np.int64), np.dtype(np.uint8))
    fits = types and indices.ndim == 1 and len(indices) <= KEPT and shapes.shape == (len(indices), 2) and pixels.ndim == 1
    if not fits or ((shapes < 1) | (shapes > SIDE)).any() or 3 * shapes.prod(axis=1).sum() != len(pixels):
        found = f"{indices.shape}, {shapes.shape}, {pixels.shape}"
        raise ArtifactError("pictures and their sizes do not match", where=path, found=found, next_command=REMAKE)
    ends = np.cumsum(3 * shapes.prod(axis=1))
    parts = np.split(pixels, ends[:-1]) if len(indices) else []
    return KeptPictures(indices, tuple(p.reshape(h, w, 3) for p, (h, w) in zip(parts, shapes, strict=True)))


PICTURES_ARTIFACT = Artifact(PICTURES, parse_pictures)
