"""What import records of its work; read without onnx."""

from dataclasses import dataclass, field

from calib.artifact import json_artifact
from edge.onnx_import.imported import ImageInput
from engines.build_folder.file_names import IMPORT
from engines.build_folder.safe_files import REMAKE
from engines.layer_records import TensorInfo


@dataclass(frozen=True)
class ImportChange:
    """One thing that import did; see `edge.onnx_import.imported.Change`."""

    kind: str
    node: str
    detail: str


@dataclass(frozen=True)
class RewrittenNode:
    """A place that a rewriter recognised; see `edge.onnx_import.rewritten.Rewritten`."""

    node: str
    into: str
    reason: str


@dataclass(frozen=True)
class RewriterResult:
    """What became of one rewriter: the places that it recognised, and whether its result was `kept`, with the reason.

    `sqnr_db` is the smallest of all outputs against the graph as imported; None where nothing was changed or nothing ran.
    """

    kind: str
    kept: bool
    reason: str
    nodes: tuple[RewrittenNode, ...]
    sqnr_db: float | None


@dataclass(frozen=True)
class ImportParity:
    """Agreement of the imported graph with the file as given, both in ONNX Runtime, on `images` images.

    `sqnr_db` is the smallest of all outputs; None, with the reason, where ONNX Runtime cannot run the file as given.
    """

    images: int
    sqnr_db: float | None
    reason: str


@dataclass(frozen=True)
class ImportRecord:
    """`import.json`: how `model.onnx` was made of an ONNX file and how well it agrees with it.

    Attributes:
        key: digest of all that decides what import makes; a build with an equal one takes this record instead. "" for none.
        judged_norms: L2 norms that the certificate of an FP16 or INT8 build judges.
        unjudged_norms: name -> reason, of those that it cannot judge.
    """

    source: str
    source_sha256: str
    onnx_sha256: str
    opset_before: int
    opset_after: int
    changes: tuple[ImportChange, ...]
    rewriters: tuple[RewriterResult, ...]
    parity: ImportParity
    input: ImageInput
    outputs: tuple[TensorInfo, ...]
    key: str = ""
    judged_norms: int = 0
    unjudged_norms: dict[str, str] = field(default_factory=dict)


IMPORT_ARTIFACT = json_artifact(IMPORT, ImportRecord, remake=REMAKE)
