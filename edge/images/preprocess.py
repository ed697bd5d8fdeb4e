"""One preprocessing for training, calibration, drift and camera: numpy only, the same everywhere up to rounding.

An image is resized so that its shorter side is `resize` pixels (separable triangle filter, widened when shrinking: the
antialiased "bilinear" of Pillow), the centre `image_size` square is cut out, values are scaled to [0, 1] and normalised per
channel. Nothing is rounded to 8 bits in between. The result depends on the pixels and on this object alone, whose digest
travels with every artifact made through it; but for the order in which the processor's BLAS sums products (`PREPROCESS_ABS`).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import ArtifactError, DataError, UsageError
from calib.files import canonical_json
from engines.build_folder.bundle_format import REMAKE
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.manifest import EngineManifest

Float32 = npt.NDArray[np.float32]
Uint8 = npt.NDArray[np.uint8]
_LARGEST_MEAN, _SMALLEST_STD = 1e6, 1e-6  # of pixels in [0, 1]: beyond, FP32 has no digits left for them


MAX_PIXELS = 1 << 26
"""Of a picture, 67 megapixels: decoding and resizing one takes a gigabyte."""
MAX_ASPECT_RATIO = 16
"""Longer side over shorter side of a picture: of a narrower one the centre square shows next to nothing."""
MAX_SIZE = 4096
"""Of `image_size` and `resize`, pixels."""
_CHUNK_CELLS = 1 << 20
_KEPT_CELLS = 1 << 20


def check_size(height: int, width: int, where: object = None) -> None:
    """Raise DataError for a picture of too many pixels, or narrower than MAX_ASPECT_RATIO; `where` is what the error names."""
    found = f"{width}x{height} pixels"
    if height * width > MAX_PIXELS:
        raise DataError("picture too large", where=where, found=found, allowed=f"at most {MAX_PIXELS:,} pixels")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        allowed = f"the longer side at most {MAX_ASPECT_RATIO} times the shorter"
        raise DataError("picture too narrow", where=where, found=found, allowed=allowed)


def resample_matrix(size_in: int, size_out: int) -> Float32:
    """The triangle-filter resampling of one axis as a matrix (size_out, size_in) whose rows sum to 1.

    Pixel j covers [j, j + 1); output i is centred at (i + 1/2) * size_in / size_out; the triangle's half-width is one input
    pixel when enlarging and size_in / size_out input pixels when shrinking.
    """
    return _resample_rows(size_in, size_out, 0, size_out)


def _resample_rows(size_in: int, size_out: int, start: int, count: int) -> Float32:
    """Rows `start` to `start + count` of `resample_matrix`, (count, size_in), without computing the others."""
    ratio = size_in / size_out
    half_width = max(ratio, 1.0)
    pixels = np.arange(size_in)[None, :] + 0.5
    matrix = np.empty((count, size_in), np.float32)
    step = max(1, _CHUNK_CELLS // size_in)
    for first in range(0, count, step):
        centres = (np.arange(start + first, start + min(first + step, count)) + 0.5) * ratio
        distance = np.abs(pixels - centres[:, None]) / half_width
        weights = np.maximum(0.0, 1.0 - distance)
        matrix[first : first + step] = weights / weights.sum(axis=1, keepdims=True)
    matrix.flags.writeable = False
    return matrix


_kept_resample_rows = lru_cache(maxsize=64)(_resample_rows)


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        image_size: side S of the square network input, pixels.
        resize: length of the shorter side after resizing, pixels, >= image_size.
        mean, std: per channel (red, green, blue), on the [0, 1] scale.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 0 < self.image_size <= self.resize:
            raise UsageError(
                "preprocessing cuts more than it resizes",
                found=f"image_size {self.image_size}, resize {self.resize}",
                allowed="0 < image_size <= resize",
            )
        finite = all(abs(value) <= _LARGEST_MEAN for value in (*self.mean, *self.std))  # false for NaN
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or not all(s >= _SMALLEST_STD for s in self.std):
            raise UsageError(
                "mean and std need three finite values each, std positive",
                found=f"{self.mean}, {self.std}",
                allowed=f"up to {_LARGEST_MEAN:g}, std from {_SMALLEST_STD:g}",
            )
        if self.resize > MAX_SIZE:
            found, allowed = f"image_size {self.image_size}, resize {self.resize}", f"at most {MAX_SIZE}"
            raise UsageError("preprocessing makes images too large", found=found, allowed=allowed)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Preprocess:
        """Rebuild from `as_json`; raises InputError on missing, unknown or ill-typed fields."""
        try:
            image_size, resize, mean, std = (fields[name] for name in ("image_size", "resize", "mean", "std"))
            if len(fields) != 4 or type(image_size) is not int or type(resize) is not int:
                raise TypeError("four fields, whole pixels")
            return cls(image_size, resize, _triple(mean), _triple(std))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            found, allowed = f"{fields}"[:200], "image_size, resize, mean, std"
            raise ArtifactError("malformed preprocessing", found=found, allowed=allowed) from error

    def as_json(self) -> dict[str, Any]:
        """Plain fields, as stored in checkpoints and manifests."""
        return asdict(self)

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON of the fields."""
        return hashlib.sha256(canonical_json(self.as_json())).hexdigest()

    def for_image_size(self, image_size: int) -> Preprocess:
        """The same preprocessing at another input size, with the same crop ratio."""
        usable = min(image_size, MAX_SIZE)  # a larger one is refused, and may not be a float
        resize = max(image_size, round(self.resize * usable / self.image_size))
        return Preprocess(image_size, resize, self.mean, self.std)

    def __call__(self, image: Uint8) -> Float32:
        """One image, uint8 (H, W, C) with C = 1 (grey) or 3 (red, green, blue) -> float32 (3, S, S)."""
        (tensor,) = self.batch(image[None])
        return np.asarray(tensor)

    def batch(self, images: Uint8) -> Float32:
        """Images of one size, uint8 (B, H, W, C) with C = 1 or 3 -> float32 (B, 3, S, S), C-contiguous. Raises DataError."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
            raise DataError(
                "not a batch of images",
                found=f"{images.dtype} {images.shape}",
                allowed="uint8 (B, H, W, C) with C 1 or 3 and no empty axis",
            )
        height, width = images.shape[1:3]
        check_size(height, width)
        rows, columns = self._axis(height, min(height, width)), self._axis(width, min(height, width))
        # (B, C, H, W), always laid out alike: the order in which a product is summed may depend on the strides
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        resized: Float32 = rows @ (pixels @ columns.T)  # (B, C, S, S)
        gain, shift = 1.0 / (255.0 * std), -mean / std  # x / 255 normalised, in one multiply-add
        normalised: Float32 = resized * gain[:, None, None].astype(np.float32) + shift[:, None, None]
        return np.ascontiguousarray(normalised, dtype=np.float32)  # a grey channel broadcasts to three

    def _axis(self, size: int, shorter: int) -> Float32:
        """Resample and crop one axis of `size` pixels: (S, size)."""
        resized = max(self.image_size, round(size * self.resize / shorter))
        start = (resized - self.image_size) // 2
        make = _kept_resample_rows if size * self.image_size <= _KEPT_CELLS else _resample_rows
        return make(size, resized, start, self.image_size)


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(v) for v in values)
    return first, second, third


def read_preprocess(manifest: EngineManifest) -> Preprocess:
    """The preprocessing of a manifest, its digest checked. Raises InputError."""
    fields = {name: value for name, value in manifest.preprocess.items() if name != "sha256"}
    preprocess = Preprocess.from_json(fields)
    if preprocess.sha256 != manifest.preprocess.get("sha256"):
        raise ArtifactError(
            "the manifest's preprocessing is not the one that was recorded", where=MANIFEST, next_command=REMAKE
        )
    return preprocess
