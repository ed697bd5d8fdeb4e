"""What `edge.model.export` records of its work; read without torch."""

from dataclasses import dataclass

from calib.artifact import json_artifact
from engines.build_folder.file_names import EXPORT
from engines.build_folder.safe_files import REMAKE


@dataclass(frozen=True)
class Simplification:
    """What became of graph simplification: `used`, or the reason why the exporter's graph was kept."""

    used: bool
    reason: str
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True)
class Parity:
    """Agreement of the ONNX graph with torch on real images: logits of `images` images."""

    images: int
    max_abs: float
    sqnr_db: float


@dataclass(frozen=True)
class ExportRecord:
    """`export.json`: how `model.onnx` was made and how well it agrees with the network in torch."""

    onnx_sha256: str
    opset: int
    foldings: tuple[str, ...]
    simplification: Simplification
    parity: Parity


EXPORT_ARTIFACT = json_artifact(EXPORT, ExportRecord, remake=REMAKE)
