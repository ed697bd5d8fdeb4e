"""`BuildFolder`, the one reader of a build folder: every file is compared with its recorded digests when it is read.

    steps.json      with a seal: digest of each file that a step wrote              `engines.build_folder.step_record`
    manifest.json   the chain from the graph to the engine, each with its digest    `engines.build_folder.manifest`
    signature.json  where one is required: signer, and every digest again           `engines.build_folder.signature`
    JSON artifacts  digests of the files that they were computed from               `engines.build_folder.references`

The returned bytes are the bytes that were hashed. `engines.build_folder.verify` compares every file at once; a file that was
read before is not hashed again. Standard library only.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from calib.artifact import Artifact
from calib.errors import ArtifactError, InputError
from calib.files import sha256_bytes
from engines.build_folder.file_names import MANIFEST, RECORD
from engines.build_folder.manifest import MANIFEST_ARTIFACT, EngineManifest, recorded_files
from engines.build_folder.references import check_references
from engines.build_folder.safe_files import REMAKE, check_digest, inside, is_there, read_contained, sha256_contained
from engines.build_folder.signature import Signature, check_listed, read_signature, signature_path
from engines.build_folder.step_record import StepRecord, parse_record
from engines.build_folder.under_construction import check_finished

T = TypeVar("T")


class BuildFolder:
    """The reader of a build folder.

    Args:
        require_signature: PEM file of the public key that must have signed every file that is read; None if not required.
        building: whether the reader is the build itself, which reads what it has written so far.

    Attributes:
        signature: the required one, else None.
        recorded: file -> artifact that states its digest -> digest.
        digests: file -> actual digest, of the files that were hashed so far.
        problems: errors of steps.json and manifest.json; no other file of such a folder is read.

    Raises ArtifactError for a missing folder, one under construction, and a missing or invalid signature; MissingError for a
    signature that cannot be checked on this machine. Errors of a file are raised when it is read.
    """

    def __init__(self, path: Path, *, require_signature: Path | None = None, building: bool = False) -> None:
        if not path.is_dir():
            raise ArtifactError("not a build folder", where=path, next_command=REMAKE)
        self.path, self._building = path, building
        if not building:
            check_finished(path)
        self.signature: Signature | None = None
        if require_signature is not None:
            self.signature = read_signature(path, require_signature)
        self.recorded: dict[str, dict[str, str]] = {}
        self.digests: dict[str, str] = {}
        self.problems: dict[str, InputError] = {}
        self._json: dict[str, bytes] = {}
        self._values: dict[Artifact[Any], Any] = {}
        self._steps: dict[str, StepRecord] = {}
        self._manifest: EngineManifest | None = None
        self._opened = self._record_status()
        for file, read in ((RECORD, self._read_steps), (MANIFEST, self._read_manifest)):
            try:
                read()
            except InputError as error:
                self.problems[file] = error

    def check_finished(self) -> None:
        """Raise ArtifactError when a build other than the reader's own has begun to change the folder since it was opened."""
        if self._building:
            return
        check_finished(self.path)
        if self._record_status() != self._opened:
            what = "a build has changed the folder while it was read"
            raise ArtifactError(what, where=self.path, next_command="run the same command again")

    def _record_status(self) -> tuple[int, int] | None:
        """Inode and time of the record, which each step of a build replaces."""
        try:
            status = (self.path / RECORD).lstat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    @property
    def manifest(self) -> EngineManifest:
        """manifest.json. Raises ArtifactError when it is missing, malformed or does not match its record."""
        self._require(RECORD, MANIFEST)
        return cast(EngineManifest, self._manifest)

    @property
    def steps(self) -> dict[str, StepRecord]:
        """steps.json. Raises ArtifactError when it is missing, malformed or does not match its seal."""
        self.check(RECORD)
        return self._steps

    def has(self, file: str) -> bool:
        """Whether anything of this name is in the folder, a dangling link included."""
        return is_there(self.path / file)

    def data(self, file: str) -> bytes:
        """A file's bytes, hashed as read. Raises ArtifactError unless they match the recorded digests."""
        self._require(RECORD, *([MANIFEST] if self.has(MANIFEST) else []))
        with self._changing():
            data = self._load(file)
            self._compare(file)
        return data

    def read(self, artifact: Artifact[T]) -> T:
        """A parsed artifact, read once. Raises ArtifactError if it is missing, malformed or does not match its record."""
        if artifact not in self._values:
            self._values[artifact] = artifact.parse(self.data(artifact.file), self.path / artifact.file)
        return cast(T, self._values[artifact])

    def find(self, artifact: Artifact[T]) -> T | None:
        """The same, None if the file does not exist; a file that was read before is not looked for again."""
        return self.read(artifact) if artifact.file in self._json or self.has(artifact.file) else None

    def engine(self) -> bytes:
        """The engine's bytes. An engine is executable code: deserialize these bytes and no others. Raises ArtifactError."""
        return self.data(self.manifest.engine.file)

    def check(self, file: str) -> None:
        """Raise ArtifactError unless a file exists and matches its recorded digests, without reading it into memory."""
        self._require(file)
        with self._changing():
            if file not in self.digests:
                if file.endswith(".json"):
                    self._load(file)
                else:
                    self.digests[file] = sha256_contained(self.path / file)
            self._compare(file)

    def sha256(self, file: str) -> str:
        """Digest of a file, checked; see `check`."""
        self.check(file)
        return self.digests[file]

    def _require(self, *files: str) -> None:
        for file in files:
            if file in self.problems:
                with self._changing():
                    raise self.problems[file]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """An error of a file that a build has begun to replace since the folder was opened says so."""
        try:
            yield
        except InputError:
            self.check_finished()
            raise

    def _read_steps(self) -> None:
        if not self.has(RECORD):
            return
        steps = parse_record(self._load(RECORD), self.path / RECORD)
        self._note(RECORD, ((file, sha256) for step in steps.values() for file, sha256 in step.writes.items()))
        self._compare(RECORD)
        self._steps = steps

    def _read_manifest(self) -> None:
        path = self.path / MANIFEST
        if not self.has(MANIFEST):
            raise ArtifactError("no manifest: the folder does not hold a finished build", where=path, next_command=REMAKE)
        data = self._load(MANIFEST)
        self._compare(MANIFEST)
        manifest = MANIFEST_ARTIFACT.parse(data, path)
        self._note(MANIFEST, recorded_files(manifest))
        self._manifest = manifest

    def _note(self, recorder: str, digests: Iterable[tuple[str, str]]) -> None:
        """Store an artifact's digests. Raises ArtifactError for a file outside the folder, and for two digests of one file."""
        for file, sha256 in digests:
            inside(self.path, file, recorder)
            if self.recorded.setdefault(file, {}).setdefault(recorder, sha256) != sha256:
                raise ArtifactError(f"{recorder} records two digests of one file", where=self.path / recorder, found=file)

    def _load(self, file: str) -> bytes:
        """A file's bytes, hashed; JSON stays in memory; graphs, engines and arrays are read each time."""
        if file not in self._json:
            data = read_contained(inside(self.path, file, MANIFEST))
            self.digests[file] = sha256_bytes(data)
            if not file.endswith(".json"):
                return data
            self._json[file] = data
        return self._json[file]

    def _compare(self, file: str) -> None:
        path, sha256 = self.path / file, self.digests[file]
        for recorder, recorded in self.recorded.get(file, {}).items():
            check_digest(path, sha256, recorded, recorder)
        if self.signature is not None:
            check_listed(self.signature, signature_path(self.path), {file: sha256})
        if self._manifest is not None and file in self._json:
            check_references(self._manifest, path, self._json[file])
