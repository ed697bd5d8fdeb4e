"""One preprocessing for training, calibration, drift and camera: numpy only, the same everywhere up to rounding.

A picture is brought to the size of the network's input by one of three rules (`edge.images.placement`), resized by a separable
triangle filter that is widened when shrinking (`edge.images.resampling`); values are scaled and normalised per channel, and
laid out as the network takes them. Nothing is rounded to 8 bits in between. The result depends on the pixels and on this
object alone, whose digest travels with every artifact made through it; but for the order in which the processor's BLAS sums
products (`PREPROCESS_ABS`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calib.errors import ArtifactError, DataError, UsageError
from calib.files import canonical_json
from edge.images.placement import FITS, Fit, Placement, place
from edge.images.resampling import resample_rows
from engines.build_folder.bundle_format import REMAKE
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.manifest import EngineManifest

Float32 = npt.NDArray[np.float32]
Uint8 = npt.NDArray[np.uint8]
Tensor = npt.NDArray[Any]
"""Images as a network takes them: float32 or uint8."""
ImageSize = int | tuple[int, int]
Layout = Literal["nchw", "nhwc"]
Colour = Literal["rgb", "bgr", "grey"]
DType = Literal["float32", "uint8"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "fit": FITS,
    "layout": ("nchw", "nhwc"),
    "colour": ("rgb", "bgr", "grey"),
    "dtype": ("float32", "uint8"),
}
_REQUIRED = ("image_size", "resize", "mean", "std")
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("image_size", "resize", "fill"), (int,)),
    **dict.fromkeys(("mean", "std", "scale"), (int, float)),
    **dict.fromkeys(_CHOICES, (str,)),
}
"""Of every field, or of its parts."""
_LARGEST_MEAN, _SMALLEST_STD = 1e6, 1e-6  # of scaled pixels: beyond, FP32 has no digits left for them
_LARGEST_SCALE = 65535.0
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in luma, ITU-R BT.601


MAX_PIXELS = 1 << 26
"""Of a picture, 67 megapixels: decoding and resizing one takes a gigabyte."""
MAX_ASPECT_RATIO = 16
"""Longer side over shorter side of a picture: of a narrower one the centre square shows next to nothing."""
MAX_SIZE = 4096
"""Of `image_size` and `resize`, pixels."""


def check_size(height: int, width: int, where: object = None) -> None:
    """Raise DataError for a picture of too many pixels, or narrower than MAX_ASPECT_RATIO; `where` is what the error names."""
    found = f"{width}x{height} pixels"
    if height * width > MAX_PIXELS:
        raise DataError("picture too large", where=where, found=found, allowed=f"at most {MAX_PIXELS:,} pixels")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        allowed = f"the longer side at most {MAX_ASPECT_RATIO} times the shorter"
        raise DataError("picture too narrow", where=where, found=found, allowed=allowed)


@dataclass(frozen=True)
class Preprocess:
    """Resize, scale, normalise.

    Attributes:
        image_size: side of the square network input, or its (height, width), pixels.
        resize: with fit "crop", the shorter side of what the picture has to cover before the centre is cut out, pixels, >= the
            shorter side of `image_size`; else the shorter side itself.
        mean, std: per channel, in the order of the network's channels, on the scale of pixel / `scale`.
        fit: how a picture of another shape is fitted, see `edge.images.placement.place`.
        fill: pixel value around a letterboxed picture, 0 to 255.
        layout: order of the axes of a batch.
        colour: the channels that the network takes; grey is one, the luma of BT.601.
        scale: what pixels of 0 to 255 are divided by.
        dtype: "uint8" for a network with the normalisation inside: rounded pixels, mean 0 and std 1; `scale` has no effect.
    """

    image_size: ImageSize
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "crop"
    fill: int = 114
    layout: Layout = "nchw"
    colour: Colour = "rgb"
    scale: float = 255.0
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int):
            height, width = self.image_size
            object.__setattr__(self, "image_size", height if height == width else (height, width))
        for name in ("mean", "std"):  # equal objects have equal digests: 1 and 1.0 are written differently
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "scale", float(self.scale))
        self._check_choices()
        self._check_sizes()
        self._check_numbers()

    def _check_choices(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"preprocessing has no such {name}", found=repr(getattr(self, name))[:80], allowed=", ".join(allowed)
                )

    def _check_sizes(self) -> None:
        found = f"image_size {_shown(self.image_size)}, resize {self.resize}"
        shorter, longer = sorted((self.height, self.width))
        if not 0 < shorter <= self.resize:
            what = "preprocessing cuts more than it resizes"
            raise UsageError(what, found=found, allowed="0 < image_size <= resize")
        if max(longer, self.resize) > MAX_SIZE:
            raise UsageError("preprocessing makes images too large", found=found, allowed=f"at most {MAX_SIZE}")
        if self.fit != "crop" and self.resize != shorter:
            allowed = f"resize {shorter}, the shorter side of image_size"
            raise UsageError(f'with fit "{self.fit}" nothing is cut off', found=found, allowed=allowed)

    def _check_numbers(self) -> None:
        count = "one finite value" if self.channels == 1 else "three finite values"
        finite = all(abs(value) <= _LARGEST_MEAN for value in (*self.mean, *self.std))  # false for NaN
        lengths = {len(self.mean), len(self.std)}
        if lengths != {self.channels} or not finite or not all(s >= _SMALLEST_STD for s in self.std):
            raise UsageError(
                f"mean and std need {count} each, std positive",
                found=f"{self.mean}, {self.std}",
                allowed=f"up to {_LARGEST_MEAN:g}, std from {_SMALLEST_STD:g}",
            )
        if not 0 <= self.fill <= 255:
            raise UsageError("the fill of a letterbox is not a pixel value", found=self.fill, allowed="0 to 255")
        if not 1 <= self.scale <= _LARGEST_SCALE:
            raise UsageError("pixels cannot be divided by this scale", found=self.scale, allowed=f"1 to {_LARGEST_SCALE:g}")
        identity = not any(self.mean) and all(s == 1 for s in self.std) and self.scale in (1, 255)
        if self.dtype == "uint8" and not identity:
            raise UsageError(
                "an input of uint8 takes pixels as they are",
                found=f"mean {self.mean}, std {self.std}, scale {self.scale:g}",
                allowed="mean 0, std 1",
            )

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Preprocess:
        """Rebuild from `as_json`; raises InputError on missing, unknown or ill-typed fields."""
        try:
            values = {name: stored[name] for name in _REQUIRED} | stored
            ill_typed = [name for name, value in values.items() if not _well_typed(name, value)]
            if ill_typed:
                raise TypeError(f"the type of {ill_typed}")
            return cls(**values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            optional = ", ".join(name for name in _TYPES if name not in _REQUIRED)
            allowed = f"{', '.join(_REQUIRED)}; optional: {optional}"
            raise ArtifactError("malformed preprocessing", found=f"{stored}"[:200], allowed=allowed) from error

    def as_json(self) -> dict[str, Any]:
        """Plain fields, as stored in checkpoints and manifests: those of _REQUIRED, and others than the defaults."""
        kept = [f.name for f in fields(self) if f.name in _REQUIRED or getattr(self, f.name) != f.default]
        return {name: getattr(self, name) for name in kept}

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON of the fields."""
        return hashlib.sha256(canonical_json(self.as_json())).hexdigest()

    @property
    def height(self) -> int:
        """Of the network's image, pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """Of the network's image, pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]

    @property
    def channels(self) -> int:
        """That the network takes: 1 or 3."""
        return 1 if self.colour == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image as the network takes it: (C, H, W), or (H, W, C) for layout "nhwc"."""
        sides = (self.height, self.width)
        return (self.channels, *sides) if self.layout == "nchw" else (*sides, self.channels)

    def for_image_size(self, image_size: ImageSize) -> Preprocess:
        """The same preprocessing at another input size, with the same crop ratio."""
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        usable = min(*sides, MAX_SIZE)  # a larger one is refused, and may not be a float
        resize = max(min(sides), round(self.resize * usable / min(self.height, self.width)))
        return replace(self, image_size=image_size, resize=resize)

    def placement(self, height: int, width: int) -> Placement:
        """Where a picture of this size lies in the network's image."""
        return place((height, width), (self.height, self.width), self.resize, self.fit)

    def __call__(self, image: Uint8) -> Tensor:
        """One image, uint8 (H, W, C) with C = 1 (grey) or 3 (red, green, blue) -> `dtype`, `shape`."""
        (tensor,) = self.batch(image[None])
        return np.asarray(tensor)

    def batch(self, images: Uint8) -> Tensor:
        """Images of one size, uint8 (B, H, W, C) with C = 1 or 3 -> `dtype` (B, *shape), C-contiguous. Raises DataError."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
            raise DataError(
                "not a batch of images",
                found=f"{images.dtype} {images.shape}",
                allowed="uint8 (B, H, W, C) with C 1 or 3 and no empty axis",
            )
        check_size(*images.shape[1:3])
        placed = self.placement(*images.shape[1:3])
        rows, columns = (
            resample_rows(axis.size, axis.resized, axis.first, axis.shown) for axis in (placed.vertical, placed.horizontal)
        )
        resized = self._filled(rows @ (self._channels(images) @ columns.T), placed)  # (B, 1 or C, H, W)
        finished = self._rounded(resized) if self.dtype == "uint8" else self._normalised(resized)
        return np.ascontiguousarray(finished if self.layout == "nchw" else finished.transpose(0, 2, 3, 1))

    def _channels(self, images: Uint8) -> Float32:
        """(B, H, W, C) -> (B, C, H, W) with the network's channels, or one, which stands for all of them."""
        if self.colour == "grey" and images.shape[3] == 3:
            weights = np.array(_GREY_WEIGHTS, np.float32)
            red, green, blue = (images[:, None, :, :, c] * weights[c] for c in range(3))
            grey: Float32 = red + green + blue
            return grey
        ordered = images[..., ::-1] if self.colour == "bgr" else images
        # always laid out alike: the order in which a product is summed may depend on the strides
        return np.ascontiguousarray(ordered.transpose(0, 3, 1, 2), np.float32)

    def _filled(self, resized: Float32, placed: Placement) -> Float32:
        """The picture in the network's image (B, C, H, W), `fill` around it."""
        if resized.shape[2:] == (self.height, self.width):
            return resized
        (rows, columns), (top, left) = resized.shape[2:], placed.offset
        image = np.full((*resized.shape[:2], self.height, self.width), self.fill, np.float32)
        image[:, :, top : top + rows, left : left + columns] = resized
        return image

    def _normalised(self, resized: Float32) -> Float32:
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        gain, shift = 1.0 / (self.scale * std), -mean / std  # x / scale normalised, in one multiply-add
        normalised: Float32 = resized * gain[:, None, None].astype(np.float32) + shift[:, None, None]
        return normalised  # a grey channel broadcasts to three

    def _rounded(self, resized: Float32) -> Uint8:
        rounded = np.rint(resized).clip(0, 255).astype(np.uint8)
        return np.broadcast_to(rounded, (len(rounded), self.channels, *rounded.shape[2:]))


def _shown(size: ImageSize) -> str:
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def _well_typed(name: str, value: Any) -> bool:
    """Whether a stored field has the type that it must have; a bool is not a number. Raises KeyError for an unknown field."""
    types = _TYPES[name]
    if isinstance(value, list | tuple):
        pair = name == "image_size" and len(value) == 2
        return (pair or name in ("mean", "std")) and all(type(v) in types for v in value)
    return type(value) in types and name not in ("mean", "std")


def read_preprocess(manifest: EngineManifest) -> Preprocess:
    """The preprocessing of a manifest, its digest checked. Raises InputError."""
    fields = {name: value for name, value in manifest.preprocess.items() if name != "sha256"}
    preprocess = Preprocess.from_json(fields)
    if preprocess.sha256 != manifest.preprocess.get("sha256"):
        raise ArtifactError(
            "the manifest's preprocessing is not the one that was recorded", where=MANIFEST, next_command=REMAKE
        )
    return preprocess
