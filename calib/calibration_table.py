"""The calibration table: which scale every quantized activation has, and from which graph and images it comes.

Weights are not in it: their per-channel scales follow from the float graph, which `onnx_sha256` pins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from calib.artifact import json_artifact, read_artifact, write_artifact
from calib.errors import InputError
from calib.scales import QMAX, activation_scale

REMAKE = "ufovit build"
REFINED = "model.refined.onnx"
SEARCHED = "search"
"""Method of a scale that a search has settled."""
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

    @classmethod
    def settled(cls, scale: float, bound: float | None = None) -> TensorScale:
        """A scale that a search has chosen by the error that it makes behind the layers."""
        return cls(scale * QMAX, scale, SEARCHED, bound=bound)


@dataclass(frozen=True)
class RangeShift:
    """How much the ranges still move with the images: |amax_A - amax_B| / amax, A and B two halves of the images.

    amax is what the table's method gives.

    Attributes:
        median: over the tensors.
        largest: over the tensors.
        tensor: where it is largest.
    """

    median: float
    largest: float
    tensor: str


@dataclass(frozen=True)
class CalibrationTable:
    """`calibration.json`.

    Attributes:
        onnx_sha256: float graph that was observed.
        data_sha256: images that were observed, as the caller defines their digest.
        images: how many.
        method: calibration method, see `calib.calibrators`.
        tensors: activation tensor -> its scale.
        synthetic: true when the images were made up; everything built from such a table is stamped.
        preprocess_sha256: what made the graph's input from the images; "" where arrays were passed as they are.
        source_sha256: float graph that the user gave, where refinements made the observed one from it; else "".
        refinements: what was done to that graph, in order.
        float_nodes: nodes that a search decided to keep in float.
        range_shift: how far the halves of the images disagree; None where it was not measured.
    """

    onnx_sha256: str
    data_sha256: str
    images: int
    method: str
    tensors: dict[str, TensorScale] = field(default_factory=dict)
    synthetic: bool = False
    preprocess_sha256: str = ""
    source_sha256: str = ""
    refinements: tuple[str, ...] = ()
    float_nodes: tuple[str, ...] = ()
    range_shift: RangeShift | None = None


def save_table(path: Path, table: CalibrationTable) -> None:
    """Write `calibration.json` atomically."""
    write_artifact(path, table)


TABLE_ARTIFACT = json_artifact("calibration.json", CalibrationTable, remake=REMAKE)


def load_table(path: Path, *, remake: str = REMAKE) -> CalibrationTable:
    """Read `calibration.json`. Raises InputError, naming `remake`, for a missing, malformed or foreign file."""
    return read_artifact(path, CalibrationTable, remake=remake)


def check_table(
    table: CalibrationTable,
    *,
    onnx_sha256: str,
    data_sha256: str | None = None,
    preprocess_sha256: str | None = None,
    remake: str = REMAKE,
    refined: str = REFINED,
) -> None:
    """Refuse a stale table: InputError unless it was made from this graph and, where given, these images, so preprocessed.

    Args:
        table: what is checked.
        onnx_sha256: the float graph.
        data_sha256: the images, None if any will do.
        preprocess_sha256: their preprocessing, None if any will do.
        remake: the command that makes such a table anew.
        refined: the file that holds the refined graph, named when the table is of that graph and this one is its source.
    """
    if table.source_sha256 and table.source_sha256 == onnx_sha256 != table.onnx_sha256:
        raise InputError(
            "calibration table belongs to the refined graph that was made from this graph",
            found=f"sha256 {onnx_sha256}; refined by {', '.join(table.refinements) or 'unnamed steps'}",
            allowed=f"sha256 {table.onnx_sha256}",
            next_command=f"pass {refined}, which was written with the table",
        )
    checks = (
        ("belongs to another graph, or to one with other weights", table.onnx_sha256, onnx_sha256),
        ("has other calibration images", table.data_sha256, data_sha256),
        ("has other preprocessing of the images", table.preprocess_sha256, preprocess_sha256),
    )
    for what, found, allowed in checks:
        if allowed is not None and found != allowed:
            raise InputError(f"calibration table {what}", found=_digest(found), allowed=_digest(allowed), next_command=remake)


def _digest(sha256: str) -> str:
    return f"sha256 {sha256}" if sha256 else "none recorded"
