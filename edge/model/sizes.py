"""The shapes of UFO-ViT: the named sizes and any other, with bounds on every number. Needs no torch."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from calib.errors import UsageError

KvAxis = Literal["contraction", "last"]
"""Which axis of K^T V is normalised: the paper's ("contraction", dim -2) or the one of ports in circulation ("last")."""
ImageSize = int | tuple[int, int]
"""Pixels: the side of a square, or (height, width)."""

STEM_STRIDE = 16
LARGEST_IMAGE_SIZE = 4096
CLASS_LAYERS, FFN_EXPANSION = 2, 4
LARGEST_COUNTS = {
    "depth": 256,
    "dim": 4096,
    "heads": 4096,
    "classes": 1 << 20,
    "class_layers": 64,
    "ffn_expansion": 16,
    "stem_widths": 4096,
}
LARGEST_NETWORK = 1 << 30
"""Parameters: 4 GiB in FP32, ten times the largest published size. Checked before anything of that size is allocated."""
SHAPE_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("depth", "dim", "heads", "classes", "class_layers", "ffn_expansion"), (int,)),
    "image_size": (int, list),
    "kv_axis": (str,),
    "stem_widths": (list,),
}
"""Fields of a shape in metadata -> their JSON types. A list of image_size is [height, width]; of stem_widths, four numbers."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _check_count(name: str, value: Any) -> None:
    largest = LARGEST_COUNTS[name]
    if type(value) is not int or not 1 <= value <= largest:
        found, allowed = f"{value!r}"[:40], f"positive, up to {largest:,}"
        raise UsageError(f"{name} must be positive and within bounds", where=name, found=found, allowed=allowed)


def image_size_text(size: ImageSize) -> str:
    """ "224", or "320x192" for (height, width)."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def check_image_size(size: ImageSize) -> ImageSize:
    """The size, one number where both sides are equal. Raises UsageError unless the stem can take it."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    fits = all(type(s) is int and STEM_STRIDE <= s <= LARGEST_IMAGE_SIZE and s % STEM_STRIDE == 0 for s in sides)
    if not fits or len(sides) != 2:
        raise UsageError(
            "image size does not fit the stem",
            where="--image-size",
            found=f"{image_size_text(size)[:80]} px",
            allowed=f"positive multiples of {STEM_STRIDE} px, the stem's stride, up to {LARGEST_IMAGE_SIZE}",
            next_command="pass --image-size with such a multiple, or HEIGHTxWIDTH with two",
        )
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


@dataclass(frozen=True)
class UfoVitConfig:
    """Shape of a UFO-ViT. The constructor raises UsageError for an impossible one, or one beyond LARGEST_NETWORK parameters.

    Attributes:
        name: one of SIZES, or any name for another shape.
        depth: number of self-attention blocks.
        dim: channels C, divisible by `heads`.
        heads: heads H.
        image_size: input in pixels, multiples of the stem's stride of 16 up to LARGEST_IMAGE_SIZE: the side of a square, or
            (height, width). Equal sides are stored as one number.
        classes: number of logits.
        kv_axis: axis of K^T V that XNorm normalises; see `edge.model.attention`.
        layer_scale: initial LayerScale gain, of interest to training only.
        stem_widths: channels of the four convolutions of the stem, the last equal to `dim`; None for C/8, C/4, C/2, C.
        class_layers: class-attention blocks, at least one: without any, the class token never reads the image.
        ffn_expansion: hidden channels of the feed-forward layers, in multiples of C.
    """

    name: str
    depth: int
    dim: int
    heads: int
    image_size: ImageSize = 224
    classes: int = 1000
    kv_axis: KvAxis = "contraction"
    layer_scale: float = 0.1
    stem_widths: tuple[int, ...] | None = None
    class_layers: int = CLASS_LAYERS
    ffn_expansion: int = FFN_EXPANSION

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            allowed = "1 to 64 letters, digits, dots, dashes and underscores"
            raise UsageError("invalid name of a network", found=repr(self.name)[:80], allowed=allowed)
        for name in LARGEST_COUNTS.keys() - {"stem_widths"}:
            _check_count(name, getattr(self, name))
        if self.stem_widths is not None:
            self._check_stem(self.stem_widths)
        if self.dim % self.heads or (self.stem_widths is None and self.dim % 8):
            raise UsageError(
                "embedding dimension does not fit heads and stem",
                found=f"dim {self.dim}, heads {self.heads}",
                allowed="dim divisible by heads and by 8" if self.stem_widths is None else "dim divisible by heads",
            )
        if self.kv_axis not in get_args(KvAxis):
            raise UsageError("unknown XNorm axis", found=str(self.kv_axis), allowed=", ".join(get_args(KvAxis)))
        object.__setattr__(self, "image_size", check_image_size(self.image_size))
        if self.stem_widths == self._default_widths:
            object.__setattr__(self, "stem_widths", None)
        if self.weights > LARGEST_NETWORK:
            found, allowed = f"about {self.weights:,} parameters", f"up to {LARGEST_NETWORK:,}"
            raise UsageError("network is too large", where=self.name, found=found, allowed=allowed)

    def _check_stem(self, widths: tuple[int, ...]) -> None:
        for width in widths:
            _check_count("stem_widths", width)
        if len(widths) != 4 or widths[-1] != self.dim:
            allowed = f"four numbers, the last equal to dim ({self.dim})"
            raise UsageError("stem does not fit the network", where="stem_widths", found=f"{widths}"[:80], allowed=allowed)

    @property
    def _default_widths(self) -> tuple[int, ...]:
        return self.dim // 8, self.dim // 4, self.dim // 2, self.dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stem's four convolutions."""
        return self._default_widths if self.stem_widths is None else self.stem_widths

    @property
    def height(self) -> int:
        """Of the input, pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """Of the input, pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w)."""
        return self.height // STEM_STRIDE, self.width // STEM_STRIDE

    @property
    def weights(self) -> int:
        """Number of weights in matrices, kernels and the position embedding: all but biases, norms and gains."""
        blocks = (self.depth + self.class_layers) * (4 + 2 * self.ffn_expansion) * self.dim**2
        stem = sum(9 * a * b for a, b in zip((3, *self.widths), self.widths, strict=False))
        return blocks + stem + (self.classes + self.grid[0] * self.grid[1]) * self.dim

    @property
    def xnorm_kv_axis(self) -> int:
        """The negative axis of K^T V (B, H, D, D) that XNorm normalises."""
        return -2 if self.kv_axis == "contraction" else -1

    @property
    def xnorm_sites(self) -> int:
        """Number of XNorms in the network: Q and K^T V of every attention."""
        return 2 * (self.depth + self.class_layers)

    def shape_fields(self) -> dict[str, Any]:
        """The fields of SHAPE_FIELDS that say what `name` does not, as JSON: of a named size, none that has its default."""
        fields = {name: getattr(self, name) for name in ("depth", "dim", "heads") if self.name not in SIZES}
        fields |= {"class_layers": self.class_layers} if self.class_layers != CLASS_LAYERS else {}
        fields |= {"ffn_expansion": self.ffn_expansion} if self.ffn_expansion != FFN_EXPANSION else {}
        return fields | ({} if self.stem_widths is None else {"stem_widths": list(self.stem_widths)})


SIZES: dict[str, UfoVitConfig] = {
    "ufovit_t": UfoVitConfig("ufovit_t", depth=24, dim=192, heads=4),
    "ufovit_s": UfoVitConfig("ufovit_s", depth=12, dim=384, heads=8),
    "ufovit_m": UfoVitConfig("ufovit_m", depth=24, dim=384, heads=8),
    "ufovit_b": UfoVitConfig("ufovit_b", depth=24, dim=512, heads=8),
}


def config(name: str, *, image_size: ImageSize = 224, classes: int = 1000, kv_axis: KvAxis = "contraction") -> UfoVitConfig:
    """The configuration of a named size. Raises UsageError with the known names for an unknown one."""
    if name not in SIZES:
        raise UsageError(f"unknown model {name!r}", where="MODEL", allowed=", ".join(SIZES))
    return replace(SIZES[name], image_size=image_size, classes=classes, kv_axis=kv_axis)


def read_config(name: str, fields: Mapping[str, Any]) -> UfoVitConfig:
    """The configuration of a named size, or of another name whose depth, dim and heads are given.

    Args:
        name: one of SIZES, or a name for another shape.
        fields: of SHAPE_FIELDS, of the JSON types that it states.

    Raises UsageError for an unknown name without a shape, for a field that contradicts the named size, and for an impossible
    shape.
    """
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if name not in SIZES:
        if not {"depth", "dim", "heads"} <= values.keys():
            return config(name)
        return UfoVitConfig(name, **values)
    known = SIZES[name]
    free = {"image_size": known.image_size, "classes": known.classes, "kv_axis": known.kv_axis}
    for field, value in values.items():
        own = known.widths if field == "stem_widths" else getattr(known, field)
        if field not in free and value != own:
            raise UsageError(f"{field} is not that of {name}", found=f"{value}"[:80], allowed=own)
    changes: dict[str, Any] = {field: values[field] for field in free.keys() & values.keys()}
    return replace(known, **changes)


def name_shape(fields: Mapping[str, Any]) -> str:
    """The named size that these fields of SHAPE_FIELDS fit, otherwise a name made of depth, dim and heads."""
    for name in SIZES:
        with contextlib.suppress(UsageError):
            read_config(name, fields)
            return name
    return f"ufovit_d{fields['depth']}_c{fields['dim']}_h{fields['heads']}"


def parse_image_size(text: str) -> ImageSize:
    """An image size from "224" or "HEIGHTxWIDTH". Raises UsageError."""
    parts = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if parts is None:
        allowed = "a number of pixels, or HEIGHTxWIDTH such as 320x192"
        raise UsageError("not an image size", where="--image-size", found=repr(text)[:80], allowed=allowed)
    return check_image_size(int(parts[1]) if parts[2] is None else (int(parts[1]), int(parts[2])))
