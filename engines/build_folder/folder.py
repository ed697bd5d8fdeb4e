"""A build folder, opened once: every file that is used is the one that was recorded. Standard library only.

    steps.json      under its seal: digest of each file that a step wrote           `engines.build_folder.step_record`
    manifest.json   the chain from the graph to the engine, each with its digest    `engines.build_folder.manifest`
    signature.json  where one is required: who made it, and every digest again      `engines.build_folder.signature`
    JSON artifacts  name the files that they were made from                         `engines.build_folder.references`

A file is compared with all of them when it is read, and the bytes that are returned are the bytes that were hashed.
`engines.build_folder.verify` compares every file at once; one that was read before is not hashed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from calib.artifact import Artifact
from calib.errors import ArtifactError, InputError
from calib.files import parse_json, sha256_bytes
from engines.build_folder.file_names import MANIFEST, RECORD
from engines.build_folder.manifest import MANIFEST_ARTIFACT, EngineManifest, no_manifest_error, recorded_files
from engines.build_folder.references import check_reference, references
from engines.build_folder.safe_files import REMAKE, check_digest, inside, is_there, read_contained, sha256_contained
from engines.build_folder.signature import Signature, check_listed, read_signature, signature_path
from engines.build_folder.step_record import StepRecord, parse_record

T = TypeVar("T")


class BuildFolder:
    """The reader of a build folder.

    Args:
        path: of the folder.
        require_signature: PEM file of the public key that must have signed every file that is read; None if none has to.

    Attributes:
        path: of the folder.
        signature: the one that was required, else None.
        recorded: file -> artifact that states its digest -> digest.
        digests: file -> digest of what lies there, of the files that were hashed so far.
        problems: why steps.json or manifest.json is refused; nothing else is read of such a folder.

    Raises ArtifactError where there is no folder, and for a signature that is missing or does not hold; MissingError for one
    that cannot be checked here. What is wrong with a file is raised when it is read.
    """

    def __init__(self, path: Path, *, require_signature: Path | None = None) -> None:
        if not path.is_dir():
            raise ArtifactError("no build folder", where=path, next_command=REMAKE)
        self.path = path
        self.signature: Signature | None = None
        if require_signature is not None:
            self.signature = read_signature(path, require_signature)
        self.recorded: dict[str, dict[str, str]] = {}
        self.digests: dict[str, str] = {}
        self.problems: dict[str, InputError] = {}
        self._json: dict[str, bytes] = {}
        self._values: dict[Artifact[Any], Any] = {}
        self._steps: dict[str, StepRecord] | None = None
        self._manifest: EngineManifest | None = None
        if self.has(RECORD):
            with self._refusing(RECORD):
                self._steps = self._read_steps()
        with self._refusing(MANIFEST):
            self._manifest = self._read_manifest()

    @property
    def manifest(self) -> EngineManifest:
        """manifest.json. Raises ArtifactError when it is missing, malformed or not the recorded one."""
        self._require(RECORD, MANIFEST)
        return cast(EngineManifest, self._manifest)

    @property
    def steps(self) -> dict[str, StepRecord]:
        """steps.json. Raises ArtifactError when it is missing, malformed or not as it was sealed."""
        self.check(RECORD)
        return cast("dict[str, StepRecord]", self._steps)

    def has(self, file: str) -> bool:
        """Whether anything of this name is in the folder, a link that leads nowhere included."""
        return is_there(self.path / file)

    def data(self, file: str) -> bytes:
        """A file's bytes, hashed as read. Raises ArtifactError unless they are what was recorded."""
        self._require(RECORD, *([MANIFEST] if self.has(MANIFEST) else []))
        data = self._load(file)
        self._compare(file)
        return data

    def read(self, artifact: Artifact[T]) -> T:
        """What a file holds, read and parsed once. Raises ArtifactError if it is missing, malformed or not the recorded one."""
        if artifact not in self._values:
            self._values[artifact] = artifact.parse(self.data(artifact.file), self.path / artifact.file)
        return cast(T, self._values[artifact])

    def find(self, artifact: Artifact[T]) -> T | None:
        """The same, None where there is no such file."""
        return self.read(artifact) if self.has(artifact.file) else None

    def engine(self) -> bytes:
        """The engine's bytes. An engine is an executable artifact: deserialize these and no others. Raises ArtifactError."""
        return self.data(self.manifest.engine.file)

    def check(self, file: str) -> None:
        """Raise ArtifactError unless a file is there and is the one that was recorded, without reading it into memory."""
        self._require(file)
        if file not in self.digests:
            if file.endswith(".json"):
                self._load(file)
            else:
                self.digests[file] = sha256_contained(self.path / file)
        self._compare(file)

    def sha256(self, file: str) -> str:
        """Digest of a file that is the one that was recorded; see `check`."""
        self.check(file)
        return self.digests[file]

    def _require(self, *files: str) -> None:
        for file in files:
            if file in self.problems:
                raise self.problems[file]

    @contextlib.contextmanager
    def _refusing(self, file: str) -> Iterator[None]:
        """What is raised in the block is this file's problem."""
        try:
            yield
        except InputError as error:
            self.problems[file] = error

    def _read_steps(self) -> dict[str, StepRecord]:
        steps = parse_record(self._load(RECORD), self.path / RECORD)
        self._note(RECORD, ((file, sha256) for step in steps.values() for file, sha256 in step.writes.items()))
        self._compare(RECORD)
        return steps

    def _read_manifest(self) -> EngineManifest:
        path = self.path / MANIFEST
        if not self.has(MANIFEST):
            raise no_manifest_error(path)
        data = self._load(MANIFEST)
        self._compare(MANIFEST)
        manifest = MANIFEST_ARTIFACT.parse(data, path)
        self._note(MANIFEST, recorded_files(manifest))
        return manifest

    def _note(self, recorder: str, digests: Iterable[tuple[str, str]]) -> None:
        """Remember what an artifact records. Raises ArtifactError for a file outside the folder, and for two digests of one."""
        for file, sha256 in digests:
            inside(self.path, file, recorder)
            if self.recorded.setdefault(file, {}).setdefault(recorder, sha256) != sha256:
                raise ArtifactError(f"{recorder} records two digests of one file", where=self.path / recorder, found=file)

    def _load(self, file: str) -> bytes:
        """A file's bytes, hashed; JSON stays in memory, graphs, engines and arrays are read anew."""
        if file not in self._json:
            data = read_contained(inside(self.path, file, MANIFEST))
            self.digests[file] = sha256_bytes(data)
            if not file.endswith(".json"):
                return data
            self._json[file] = data
        return self._json[file]

    def _compare(self, file: str) -> None:
        path, sha256 = self.path / file, self.digests[file]
        for recorder, stated in self.recorded.get(file, {}).items():
            check_digest(path, sha256, stated, recorder)
        if self.signature is not None:
            check_listed(self.signature, signature_path(self.path), {file: sha256})
        if self._manifest is not None and file in self._json:
            speaks_of = [reference for reference in references(self._manifest) if reference.file == file]
            fields = parse_json(self._json[file], path, remake=REMAKE) if speaks_of else {}
            for reference in speaks_of:
                check_reference(reference, fields, path)
