"""The FP32 reference's answers as another folder holds them: where they are there, nothing that runs the reference is needed.

Three files of a build folder are enough: `drift.json`, the file of answers, and `steps.json`, which holds their digests under a
seal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calib.errors import InputError
from edge.drift.drift_report import DRIFT_ARTIFACT, Source
from edge.tasks.registry import load_task, read_answers
from edge.tasks.task import Outputs
from engines.build_folder.file_names import ANSWERS, DRIFT, RECORD
from engines.build_folder.folder import BuildFolder

REMAKE = "ufovit drift BUILD, where the FP32 graph is"


@dataclass(frozen=True)
class StoredAnswers:
    """Answers of a reference.

    Attributes:
        folder: where they lie.
        reference: what gave them.
        data_sha256: of the images, right answers included; `preprocess_sha256`: of what these went through.
        outputs: what the reference gave for each image.
        sha256: of the file of answers.
    """

    folder: Path
    reference: Source
    data_sha256: str
    preprocess_sha256: str
    outputs: Outputs
    sha256: str


def read_stored(folder: Path) -> StoredAnswers:
    """The answers that a build folder, or a copy of its three files, holds. Raises InputError for files other than recorded."""
    build = BuildFolder(folder)
    recorded = {file for step in build.steps.values() for file in step.writes}
    for file in (DRIFT, ANSWERS):
        if file not in recorded:
            raise InputError("no stored answers", where=folder, found=f"{RECORD} records no {file}", next_command=REMAKE)
    drift = build.read(DRIFT_ARTIFACT)
    sides = read_answers(build, load_task(drift.task))
    sha256 = build.digests[ANSWERS]
    return StoredAnswers(folder, drift.reference, drift.data_sha256, drift.preprocess_sha256, sides.reference, sha256)


def check_stored(stored: StoredAnswers, asked: dict[str, tuple[str, str]], images: int) -> None:
    """Raise InputError unless the answers are of the same network, to the same images.

    Args:
        stored: the answers.
        asked: what has to be the same, in words -> digest of the stored and digest of what is judged now.
        images: how many there are now.
    """
    different = [what for what, (found, wanted) in asked.items() if found != wanted]
    count = len(stored.outputs[0])
    if count != images:
        different.append(f"number of images, {count} and {images}")
    if different:
        raise InputError(
            "the stored answers are of something else",
            where=stored.folder,
            found=f"another {', another '.join(different)}",
            allowed="answers of the FP32 graph that the engine was built from, to the same images, prepared alike",
            next_command=REMAKE,
        )
