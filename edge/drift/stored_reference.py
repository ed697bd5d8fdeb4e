"""Stored answers of the FP32 reference, from another folder: with them, a machine can judge without running the reference."""

from dataclasses import dataclass
from pathlib import Path

from calib.errors import ArtifactError
from edge.drift.drift_report import DRIFT_ARTIFACT, Source
from edge.tasks.registry import load_task, read_answers
from edge.tasks.task import Outputs
from engines.build_folder.file_names import ANSWERS, DRIFT, RECORD
from engines.build_folder.folder import BuildFolder

REMAKE = "ufovit drift BUILD, where the FP32 graph is"


@dataclass(frozen=True)
class StoredAnswers:
    """Outputs of a reference in a folder; `data_sha256`: of images and right answers, `sha256`: of the file of answers."""

    folder: Path
    reference: Source
    data_sha256: str
    preprocess_sha256: str
    outputs: Outputs
    sha256: str


def read_stored(folder: Path) -> StoredAnswers:
    """Read the answers in a build folder, or in a copy of its drift.json, answers and steps.json, which records both.

    Raises ArtifactError for files other than recorded.
    """
    build = BuildFolder(folder)
    recorded = {file for step in build.steps.values() for file in step.writes}
    for file in (DRIFT, ANSWERS):
        if file not in recorded:
            raise ArtifactError("no stored answers", where=folder, found=f"{RECORD} records no {file}", next_command=REMAKE)
    drift = build.read(DRIFT_ARTIFACT)
    sides = read_answers(build, load_task(drift.task))
    if not sides.reference:
        raise ArtifactError(
            "the folder holds figures of its outputs, not the outputs: those of all images were too large to store",
            where=folder / ANSWERS,
            found=f"{drift.images} images",
            allowed="answers to fewer images",
            next_command=f"{REMAKE}, with fewer images: --data DIR",
        )
    sha256 = build.digests[ANSWERS]
    return StoredAnswers(folder, drift.reference, drift.data_sha256, drift.preprocess_sha256, sides.reference, sha256)


def check_stored(stored: StoredAnswers, digests: dict[str, tuple[str, str]], images: int) -> None:
    """Raise ArtifactError unless the stored answers are those of the same network to the same `images` images.

    `digests`: what must be equal, in words -> digest of the stored and of what is judged now.
    """
    different = [what for what, (before, now) in digests.items() if before != now]
    count = len(stored.outputs[0])
    if count != images:
        different.append(f"number of images, {count} and {images}")
    if different:
        raise ArtifactError(
            "the stored answers are those of another network or other images",
            where=stored.folder,
            found=f"another {', another '.join(different)}",
            allowed="answers of the FP32 graph that the engine was built from, to the same images, prepared alike",
            next_command=REMAKE,
        )
