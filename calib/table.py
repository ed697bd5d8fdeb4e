"""The calibration table: which scale every quantized activation has, and from which graph and images it comes.

Weights are not in it: their per-channel scales follow from the float graph, which `onnx_sha256` pins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from calib.artifact import read_artifact, write_artifact
from calib.errors import InputError
from calib.scales import activation_scale

REMAKE = "ufovit build"
MIN_IMAGES = 32
"""Fewest images that give a table."""


@dataclass(frozen=True)
class TensorScale:
    """Scale of one activation tensor.

    Attributes:
        amax: largest magnitude that INT8 represents.
        scale: amax / 127 rounded up to FP16, see `calib.scales`; a scale that does not follow from amax is refused.
        method: calibration method that gave amax.
        source: "data" when the images decided, "proof" when a bound for every image was no larger than what they gave.
        bound: that bound, None where none is known.
    """

    amax: float
    scale: float
    method: str
    source: Literal["data", "proof"] = "data"
    bound: float | None = None

    def __post_init__(self) -> None:
        expected = activation_scale(self.amax, "in a calibration table")
        if self.scale != expected:
            raise InputError("scale does not follow from amax", found=f"{self.scale!r}, amax {self.amax!r}", allowed=expected)

    @classmethod
    def from_amax(cls, amax: float, tensor: str, method: str, bound: float | None = None) -> TensorScale:
        """Scale of `tensor` from its amax, or from a proven bound where that is smaller.

        Raises InputError for a range without an FP16 scale.
        """
        proven = bound is not None and bound <= amax
        chosen = bound if bound is not None and proven else amax
        return cls(chosen, activation_scale(chosen, tensor), method, "proof" if proven else "data", bound)


@dataclass(frozen=True)
class CalibrationTable:
    """`calibration.json`.

    Attributes:
        onnx_sha256: float graph that was observed.
        data_sha256: images that were observed, as the caller defines their digest.
        images: how many.
        method: calibration method, see `calib.ranges`.
        tensors: activation tensor -> its scale.
        synthetic: true when the images were made up; everything built from such a table is stamped.
    """

    onnx_sha256: str
    data_sha256: str
    images: int
    method: str
    tensors: dict[str, TensorScale] = field(default_factory=dict)
    synthetic: bool = False


def save_table(path: Path, table: CalibrationTable) -> None:
    """Write `calibration.json` atomically."""
    write_artifact(path, table)


def load_table(path: Path) -> CalibrationTable:
    """Read `calibration.json`. Raises InputError for a missing, malformed or foreign file."""
    return read_artifact(path, CalibrationTable, remake=REMAKE)


def check_table(table: CalibrationTable, *, onnx_sha256: str, data_sha256: str | None = None) -> None:
    """Refuse a stale table: InputError unless it was made from this graph and, where given, these images."""
    checks = (("graph", table.onnx_sha256, onnx_sha256), ("calibration images", table.data_sha256, data_sha256))
    for what, found, allowed in checks:
        if allowed is not None and found != allowed:
            raise InputError(
                f"calibration table belongs to another {what}" if what == "graph" else f"calibration table has other {what}",
                found=f"sha256 {found}",
                allowed=f"sha256 {allowed}",
                next_command=REMAKE,
            )
