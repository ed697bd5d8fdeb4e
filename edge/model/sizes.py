"""The sizes of UFO-ViT and what may be varied. Needs no torch."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from calib.errors import UsageError

KvAxis = Literal["contraction", "last"]
"""Which axis of K^T V is normalised: the paper's ("contraction", dim -2) or the one of ports in circulation ("last")."""

STEM_STRIDE = 16
LARGEST_IMAGE_SIZE = 4096
CLASS_LAYERS = 2


@dataclass(frozen=True)
class UfoVitConfig:
    """Shape of a UFO-ViT. The constructor raises InputError for an impossible one.

    Attributes:
        name: one of SIZES, or any name for a custom shape.
        depth: number of self-attention blocks.
        dim: channels C, divisible by 8 (stem widths) and by `heads`.
        heads: heads H.
        image_size: side S of the square input in pixels, a multiple of the stem's stride of 16, up to LARGEST_IMAGE_SIZE.
        classes: number of logits.
        kv_axis: axis of K^T V that XNorm normalises; see `edge.model.attention`.
        layer_scale: initial LayerScale gain, of interest to training only.
    """

    name: str
    depth: int
    dim: int
    heads: int
    image_size: int = 224
    classes: int = 1000
    kv_axis: KvAxis = "contraction"
    layer_scale: float = 0.1

    def __post_init__(self) -> None:
        counts = (self.depth, self.dim, self.heads, self.classes)
        if min(counts) < 1:
            raise UsageError("depth, dim, heads and classes must be positive", found=", ".join(map(str, counts)))
        if not STEM_STRIDE <= self.image_size <= LARGEST_IMAGE_SIZE or self.image_size % STEM_STRIDE:
            raise UsageError(
                "image size does not fit the stem",
                where="--image-size",
                found=f"{self.image_size} px",
                allowed=f"positive multiples of {STEM_STRIDE} px, the stem's stride, up to {LARGEST_IMAGE_SIZE}",
                next_command="pass --image-size with such a multiple",
            )
        if self.dim % self.heads or self.dim % 8:
            raise UsageError(
                "embedding dimension does not fit heads and stem",
                found=f"dim {self.dim}, heads {self.heads}",
                allowed="dim divisible by heads and by 8",
            )
        if self.kv_axis not in get_args(KvAxis):
            raise UsageError("unknown XNorm axis", found=str(self.kv_axis), allowed=", ".join(get_args(KvAxis)))

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w)."""
        side = self.image_size // STEM_STRIDE
        return side, side

    @property
    def xnorm_kv_axis(self) -> int:
        """The negative axis of K^T V (B, H, D, D) that XNorm normalises."""
        return -2 if self.kv_axis == "contraction" else -1

    @property
    def xnorm_sites(self) -> int:
        """Number of XNorms in the network: Q and K^T V of every attention."""
        return 2 * (self.depth + CLASS_LAYERS)


SIZES: dict[str, UfoVitConfig] = {
    "ufovit_t": UfoVitConfig("ufovit_t", depth=24, dim=192, heads=4),
    "ufovit_s": UfoVitConfig("ufovit_s", depth=12, dim=384, heads=8),
    "ufovit_m": UfoVitConfig("ufovit_m", depth=24, dim=384, heads=8),
    "ufovit_b": UfoVitConfig("ufovit_b", depth=24, dim=512, heads=8),
}


def config(name: str, *, image_size: int = 224, classes: int = 1000, kv_axis: KvAxis = "contraction") -> UfoVitConfig:
    """The configuration of a named size. Raises InputError with the known names for an unknown one."""
    if name not in SIZES:
        raise UsageError(f"unknown model {name!r}", where="MODEL", allowed=", ".join(SIZES))
    return replace(SIZES[name], image_size=image_size, classes=classes, kv_axis=kv_axis)
