"""The FP32 reference's answers as another folder holds them: where they are there, nothing that runs the reference is needed.

Three files of a build folder are enough: `drift.json`, `logits.npz`, and `steps.json`, which holds their digests under a seal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calib.errors import InputError
from calib.files import sha256_bytes
from edge.drift.compare import DriftReport, Source
from edge.tasks.classification.logit_metrics import Floats
from edge.tasks.classification.logits import parse_logits
from engines.build_folder.file_names import DRIFT, LOGITS, RECORD
from engines.build_folder.safe_files import compare, parse_artifact, read_contained
from engines.build_folder.step_record import read_record

REMAKE = "ufovit drift BUILD, where the FP32 graph is"


@dataclass(frozen=True)
class StoredAnswers:
    """Answers of a reference.

    Attributes:
        folder: where they lie.
        reference: what gave them.
        data_sha256: of the images, labels included; `preprocess_sha256`: of what these went through.
        logits: (n, classes).
        sha256: of the file of logits.
    """

    folder: Path
    reference: Source
    data_sha256: str
    preprocess_sha256: str
    logits: Floats
    sha256: str


def read_stored(folder: Path) -> StoredAnswers:
    """The answers that a build folder, or a copy of its three files, holds. Raises InputError for files other than recorded."""
    recorded = {file: sha256 for step in read_record(folder).values() for file, sha256 in step.writes.items()}
    data = {}
    for file in (DRIFT, LOGITS):
        if file not in recorded:
            raise InputError("no stored answers", where=folder, found=f"{RECORD} records no {file}", next_command=REMAKE)
        data[file] = read_contained(folder / file)
        compare(folder / file, sha256_bytes(data[file]), recorded[file], RECORD)
    drift = parse_artifact(data[DRIFT], folder / DRIFT, DriftReport)
    logits = parse_logits(data[LOGITS], folder / LOGITS)
    return StoredAnswers(
        folder, drift.reference, drift.data_sha256, drift.preprocess_sha256, logits.reference, recorded[LOGITS]
    )


def check_stored(stored: StoredAnswers, asked: dict[str, tuple[str, str]], images: int) -> None:
    """Raise InputError unless the answers are of the same network, to the same images.

    Args:
        stored: the answers.
        asked: what has to be the same, in words -> digest of the stored and digest of what is judged now.
        images: how many there are now.
    """
    different = [what for what, (found, wanted) in asked.items() if found != wanted]
    if len(stored.logits) != images:
        different.append(f"number of images, {len(stored.logits)} and {images}")
    if different:
        raise InputError(
            "the stored answers are of something else",
            where=stored.folder,
            found=f"another {', another '.join(different)}",
            allowed="answers of the FP32 graph that the engine was built from, to the same images, prepared alike",
            next_command=REMAKE,
        )
