"""steps.json: a digest of what every step of a build read, and of each file that it wrote, with a seal. Standard library only.

    {"schema_version": 1, "seal": S, "steps": {name: {"reads": digest, "writes": {file: sha256}}}}

S is the SHA-256 of the canonical JSON of the same object without `seal`, and the file is exactly that JSON: any change breaks
the seal. A seal detects damage; a signature (`signature`) proves who wrote the record.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from calib.artifact import SCHEMA_VERSION, Artifact, from_fields
from calib.errors import ArtifactError
from calib.files import canonical_json, sha256_bytes, write_bytes
from calib.json_reader import parse_json
from engines.build_folder.file_names import RECORD
from engines.build_folder.safe_files import REMAKE, read_contained


@dataclass(frozen=True)
class StepRecord:
    """A finished step: digest of its inputs, and file -> SHA-256 of its outputs."""

    reads: str
    writes: dict[str, str]


def write_record(folder: Path, steps: Mapping[str, StepRecord]) -> None:
    """Write steps.json, sealed, atomically."""
    write_bytes(folder / RECORD, _sealed(steps))


def read_record(folder: Path) -> dict[str, StepRecord]:
    """The record of a folder whose steps are running. Read that of a finished build with `BuildFolder.steps`."""
    path = folder / RECORD
    return parse_record(read_contained(path), path)


def parse_record(data: bytes, path: Path) -> dict[str, StepRecord]:
    """Parse a record; errors name `path`. Raises ArtifactError for a record that does not match its seal."""
    fields = parse_json(data, path, remake=REMAKE)
    try:
        steps = {name: from_fields(StepRecord, step, name) for name, step in fields["steps"].items()}
        intact = _sealed(steps) == data
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ArtifactError("malformed record of steps", where=path, found=error, next_command=REMAKE) from error
    if not intact:
        raise ArtifactError(
            "record of steps does not match its seal", where=path, allowed="the bytes that a build wrote", next_command=REMAKE
        )
    return steps


STEPS_ARTIFACT = Artifact(RECORD, parse_record)


def _sealed(steps: Mapping[str, StepRecord]) -> bytes:
    content = {"schema_version": SCHEMA_VERSION, "steps": {name: asdict(step) for name, step in steps.items()}}
    return canonical_json({**content, "seal": sha256_bytes(canonical_json(content))})
