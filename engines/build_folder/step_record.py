"""steps.json: what every step of a build read, and the digest of each file that it wrote, under a seal. Stdlib only.

    {"schema_version": 1, "seal": S, "steps": {name: {"reads": digest, "writes": {file: sha256}}}}

S is the SHA-256 of the canonical JSON of the same object without `seal`, and the file is that JSON to the last byte: whatever
is changed in it, the record no longer holds. A seal shows damage; who made the record is for a signature (`signature`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from calib.artifact import SCHEMA_VERSION, Artifact, from_fields
from calib.errors import ArtifactError
from calib.files import canonical_json, parse_json, sha256_bytes, write_bytes
from engines.build_folder.file_names import RECORD
from engines.build_folder.safe_files import REMAKE, read_contained


@dataclass(frozen=True)
class StepRecord:
    """A finished step: digest of all that it read, and file -> SHA-256 of all that it wrote."""

    reads: str
    writes: dict[str, str]


def write_record(folder: Path, steps: Mapping[str, StepRecord]) -> None:
    """Write steps.json, sealed, atomically."""
    write_bytes(folder / RECORD, _sealed(steps))


def read_record(folder: Path) -> dict[str, StepRecord]:
    """The record of a folder whose steps are being run. `BuildFolder.steps` is for whoever reads a finished build."""
    path = folder / RECORD
    return parse_record(read_contained(path), path)


def parse_record(data: bytes, path: Path) -> dict[str, StepRecord]:
    """The record that bytes hold; `path` is what errors name. Raises ArtifactError for a record not as it was sealed."""
    fields = parse_json(data, path, remake=REMAKE)
    try:
        steps = {name: from_fields(StepRecord, step, name) for name, step in fields["steps"].items()}
        intact = _sealed(steps) == data
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ArtifactError("malformed record of steps", where=path, found=error, next_command=REMAKE) from error
    if not intact:
        raise ArtifactError(
            "record of steps is not as it was sealed", where=path, allowed="the bytes that a build wrote", next_command=REMAKE
        )
    return steps


STEPS_ARTIFACT = Artifact(RECORD, parse_record)


def _sealed(steps: Mapping[str, StepRecord]) -> bytes:
    content = {"schema_version": SCHEMA_VERSION, "steps": {name: asdict(step) for name, step in steps.items()}}
    return canonical_json({**content, "seal": sha256_bytes(canonical_json(content))})
