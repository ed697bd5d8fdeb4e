"""The calibration table `calibration.json`: the scale of every quantized activation, and the graph and images it comes from.

Weights are not in it: their per-channel scales follow from the float graph, which `onnx_sha256` identifies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from calib.artifact import json_artifact, read_artifact, write_artifact
from calib.errors import ArtifactError
from calib.placement_record import Placement
from calib.scales import QMAX, activation_scale

REMAKE = "ufovit build"
REFINED = "model.refined.onnx"
SEARCHED = "search"
"""Method of a scale that `calib.refine.scale_search` chose."""
MIN_IMAGES = 32
"""Fewest images that give a table."""


@dataclass(frozen=True)
class TensorScale:
    """Scale of one activation tensor.

    Attributes:
        amax: largest magnitude that INT8 represents.
        scale: amax / 127 rounded up to FP16, see `calib.scales`; any other scale is refused.
        source: "proof" when a bound proven for every image was at most the amax of the calibration images, else "data".
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
            raise ArtifactError("scale does not match amax", found=f"{self.scale!r}, amax {self.amax!r}", allowed=expected)

    @classmethod
    def from_amax(cls, amax: float, tensor: str, method: str, bound: float | None = None) -> TensorScale:
        """Scale of `tensor` from its amax, or from a proven bound where that is smaller; errors see `activation_scale`."""
        proven = bound is not None and bound <= amax
        chosen = bound if bound is not None and proven else amax
        return cls(chosen, activation_scale(chosen, tensor), method, "proof" if proven else "data", bound)

    @classmethod
    def from_search(cls, scale: float, bound: float | None = None) -> TensorScale:
        """A scale that was chosen by the error in the outputs of the layers that read the tensor."""
        return cls(scale * QMAX, scale, SEARCHED, bound=bound)


@dataclass(frozen=True)
class RangeShift:
    """How much the ranges depend on the images: |amax_A - amax_B| / amax, A and B two halves of them, by the table's method.

    Median and largest value over the tensors, and the tensor where it is largest.
    """

    median: float
    largest: float
    tensor: str


@dataclass(frozen=True)
class Comparison:
    """Results of calibration, compared on calibration images that the refinements did not use.

    Attributes:
        images: number of these images; 0 where there were too few for a comparison, and the least effort was kept.
        sqnr_db: result -> SQNR against the float graph, of the output where it is lowest; plain methods by their name, refined
            results by that of their effort.
        kept: the result that the table is of.
    """

    images: int
    sqnr_db: dict[str, float]
    kept: str

    def __str__(self) -> str:
        """A sentence for the user."""
        if not self.images:
            return f"kept {self.kept}: too few images to hold some out and compare the refinements with it"
        best = self.sqnr_db[self.kept]
        others = ", ".join(f"{name} {db:.1f} dB ({db - best:+.1f})" for name, db in self.sqnr_db.items() if name != self.kept)
        return f"kept {self.kept}, {best:.1f} dB on {self.images} of the calibration images; {others}"


@dataclass(frozen=True)
class CalibrationTable:
    """`calibration.json`.

    Attributes:
        onnx_sha256: float graph that was calibrated.
        data_sha256: calibration images, as the caller defines their digest.
        images: their number.
        synthetic: whether the images are; everything built from such a table is stamped.
        preprocess_sha256: preprocessing from images to the graph's input; "" where arrays were passed as they are.
        source_sha256: float graph of the user, where refinements produced the calibrated one from it; else "".
        refinements: applied to that graph, in order.
        float_nodes: nodes that the placement or the budget search keeps in float.
        range_shift: difference between halves of the images; None where it was not measured.
        comparison: of several results; None, and not in the file, where the requested method alone was kept without an effort.
        placement: how the nodes in float were chosen; None, and not in the file, where that was not searched for.
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
    comparison: Comparison | None = None
    placement: Placement | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        fields = asdict(self)
        for optional in ("comparison", "placement"):
            if fields[optional] is None:
                del fields[optional]
        return fields


def save_table(path: Path, table: CalibrationTable) -> None:
    """Write `calibration.json` atomically."""
    write_artifact(path, table)


TABLE_ARTIFACT = json_artifact("calibration.json", CalibrationTable, remake=REMAKE)


def load_table(path: Path, *, remake: str = REMAKE) -> CalibrationTable:
    """Read `calibration.json`; errors name `remake`."""
    return read_artifact(path, CalibrationTable, remake=remake)


def check_table(
    table: CalibrationTable,
    *,
    onnx_sha256: str,
    data_sha256: str | None = None,
    preprocess_sha256: str | None = None,
    remake: str = REMAKE,
) -> None:
    """Refuse a stale table: ArtifactError unless it was made from this graph and, where given, these images and preprocessing.

    `data_sha256` and `preprocess_sha256` None accept any. `remake` is the command that writes such a table.
    """
    if table.source_sha256 and table.source_sha256 == onnx_sha256 != table.onnx_sha256:
        raise ArtifactError(
            "calibration table belongs to the refined graph that was made from this graph",
            found=f"sha256 {onnx_sha256}; refined by {', '.join(table.refinements) or 'unnamed steps'}",
            allowed=f"sha256 {table.onnx_sha256}",
            next_command=f"pass {REFINED}, which was written with the table",
        )
    checks = (
        ("belongs to another graph, or to one with other weights", table.onnx_sha256, onnx_sha256),
        ("has other calibration images", table.data_sha256, data_sha256),
        ("has other preprocessing of the images", table.preprocess_sha256, preprocess_sha256),
    )
    for what, recorded, required in checks:
        if required is not None and recorded != required:
            found, allowed = (f"sha256 {digest}" if digest else "none recorded" for digest in (recorded, required))
            raise ArtifactError(f"calibration table {what}", found=found, allowed=allowed, next_command=remake)
