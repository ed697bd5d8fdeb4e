"""Read and write a bundle: everything a device needs to build and check its own engine, in one file.

A ZIP archive whose comment is the SHA-256 of all bytes before it, so that every changed bit is detected. Its members:

    bundle.json                what it is, and the SHA-256 and size of every other member
    manifest.json              of the build that it was made from: checkpoint, graphs, preprocessing, labels
    model.typed.onnx           the strongly typed graph (model.onnx in an FP32 build)
    calibration.json xnorm.json    where the build has them
    pixels.npy shapes.npy      uint8, all test images concatenated, and their (height, width, channels), int64 (n, 3)
    logits.npy labels.npy      float32 (n, classes), the FP32 reference's answers to these images, and int64 (n,); or, for a
    output_0.npy ...           task of another kind, its outputs (n, ...), float32 or integers
    golden.npy                 the first image as the network's input, float32 or uint8

Equal contents give equal bytes. Nothing is extracted to the archive's own names. Refused before a byte is used: a member of
another name, one that bundle.json does not list, a listed one that is missing, an entry of another format than written here
(a link, an encrypted one), a size or a digest that differs.
Standard library only: a device reads it with numpy, TensorRT and pycuda alone.
"""

import dataclasses
import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from calib.artifact import parse_artifact
from calib.errors import ArtifactError
from calib.files import ARCHIVE_ERRORS, atomic_path, canonical_json, open_regular, sha256_bytes, sha256_file
from engines.build_folder.file_names import CALIBRATION, CERTIFICATE, MANIFEST, MODEL, TYPED, XNORM
from engines.build_folder.manifest import FileRecord
from engines.build_folder.safe_files import check_digest
from engines.layer_records import GraphFacts

BUNDLE = "bundle.json"
SUFFIX = ".ufovit"
PIXELS, SHAPES, GOLDEN = "pixels.npy", "shapes.npy", "golden.npy"
CLASSIFIED, FIRST_OUTPUT = frozenset({"logits.npy", "labels.npy"}), "output_0.npy"
_OUTPUT = re.compile(r"output_(0|[1-9][0-9]{0,2})\.npy")
REMAKE = "ufovit bundle BUILD"
_ALWAYS = frozenset({MANIFEST, PIXELS, SHAPES, GOLDEN})
_GRAPHS = (TYPED, MODEL)
_SOMETIMES = frozenset({CALIBRATION, CERTIFICATE, XNORM})
_OPTIONAL = ("budget_sqnr_db", "budget_cosine")
_LARGEST_BYTES = 8 << 30
_ALWAYS_UNPACKED, _LARGEST_RATIO = 64 << 20, 16
"""A bundle may unpack to 64 MiB, and beyond that to 16 times its size: weights and photographs shrink to half at best."""
_LARGEST_HEADER_BYTES = 16 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a ZIP archive holds: equal contents give equal bytes
_MODE = 0o644 << 16
_CHUNK = 1 << 20


@dataclass(frozen=True)
class MemberRecord:
    """A member's SHA-256 and its size when unpacked."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class BundleInfo:
    """`bundle.json`.

    Attributes:
        graph: the member that holds the ONNX graph.
        facts: of the graph, as the builder needs them.
        batch: smallest, usual and largest batch size of the engine.
        int8_floor: least share of the MACs that must run in INT8; None for the target's own.
        budget_points: accuracy budget in percentage points; `budget_sqnr_db`, `budget_cosine`: those of other tasks.
        random_weights: the weights are random: such an engine has no accuracy.
        reference: the FP32 graph whose answers are stored; `reference_ran_on` names what ran it.
        data: source of the test images; `data_sha256` is the digest of the labelled images.
        members: name -> digest and size of every other member.
    """

    schema_version: ClassVar[int] = 2  # 2: several outputs

    model: str
    precision: str
    graph: str
    facts: GraphFacts
    batch: tuple[int, int, int]
    int8_floor: float | None
    budget_points: float
    random_weights: bool
    reference: FileRecord
    reference_ran_on: str
    data: str
    data_sha256: str
    members: dict[str, MemberRecord]
    budget_sqnr_db: float | None = None
    budget_cosine: float | None = None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose archive was checked; members are checked as they are read. `sha256` is of the whole file."""

    path: Path
    sha256: str
    info: BundleInfo

    def read(self, name: str) -> bytes:
        """The bytes of a member, checked against bundle.json. Raises ArtifactError naming the member."""
        if name not in self.info.members:
            raise ArtifactError(
                "the bundle has no such member", where=self.path, found=name, allowed=", ".join(self.info.members)
            )
        record = self.info.members[name]
        data = _read_member(self.path, name, record.bytes)
        check_digest(_member_path(self.path, name), sha256_bytes(data), record.sha256, BUNDLE, remake=REMAKE)
        return data


def write_bundle(path: Path, info: BundleInfo, members: Mapping[str, bytes]) -> None:
    """Write a bundle, atomically; `info.members` is filled in from `members`."""
    records = {name: MemberRecord(sha256_bytes(data), len(data)) for name, data in sorted(members.items())}
    filled = dataclasses.replace(info, members=records)
    fields = {n: v for n, v in dataclasses.asdict(filled).items() if v is not None or n not in _OPTIONAL}
    header = canonical_json({"schema_version": BundleInfo.schema_version, **fields})
    _check_names(path, filled, [BUNDLE, *members])
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, data in ((BUNDLE, header), *sorted(members.items())):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = _MODE
                # maps that are zero nearly everywhere would shrink so far that `_check_unpacked` takes them for a bomb
                archive.writestr(entry, data, **({"compresslevel": 0} if _OUTPUT.fullmatch(name) else {}))
            archive.comment = b"0" * 64
        _check_unpacked(path, filled, temporary.stat().st_size)
        digest = _body_sha256(temporary)
        with temporary.open("r+b") as stream:
            stream.seek(-64, 2)
            stream.write(digest.encode())


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check the archive: whole, with exactly the members that bundle.json lists.

    Raises ArtifactError naming the member that differs, or else the file.
    """
    try:
        with open_regular(path, missing="bundle not found", remake=REMAKE) as stream:
            size = os.fstat(stream.fileno()).st_size
        with zipfile.ZipFile(path) as archive:
            entries, comment = archive.infolist(), archive.comment
        intact = _body_sha256(path).encode() == comment
        _check_entries(path, entries)
        info = parse_artifact(_read_member(path, BUNDLE, None), _member_path(path, BUNDLE), BundleInfo, remake=REMAKE)
        _check_names(path, info, [entry.filename for entry in entries])
        _check_unpacked(path, info, size)
    except OSError as error:
        raise ArtifactError("bundle cannot be read", where=path, found=error.strerror or error) from error
    except ARCHIVE_ERRORS as error:
        raise ArtifactError("not a bundle, or a damaged one", where=path, found=error, next_command=REMAKE) from error
    bundle = Bundle(path, sha256_file(path), info)
    if not intact:
        for name in info.members:
            bundle.read(name)  # raises for the member that differs, if there is one
        raise ArtifactError("the archive was changed outside its members", where=path, next_command=REMAKE)
    return bundle


def verify_bundle(path: Path) -> Bundle:
    """Open a bundle and check every member. Raises ArtifactError naming the first member that differs."""
    bundle = open_bundle(path)
    for name in bundle.info.members:
        bundle.read(name)
    return bundle


def is_answer(name: str) -> bool:
    """Whether a member holds answers of the reference, or right answers."""
    return name in CLASSIFIED or _OUTPUT.fullmatch(name) is not None


def _member_path(path: Path, name: str) -> Path:
    """A member as errors name it."""
    return Path(f"{path}: {name}")


def _read_member(path: Path, name: str, size: int | None) -> bytes:
    """The bytes of a member; a member that unpacks to more than `size` is not unpacked."""
    limit = _LARGEST_HEADER_BYTES if size is None else size
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            data = stream.read(limit + 1)
            rest = stream.read(1)  # at the end, the archive's own checksum is compared
    except KeyError as error:
        raise ArtifactError("the bundle lacks a member", where=path, found=name, next_command=REMAKE) from error
    except ARCHIVE_ERRORS as error:
        raise ArtifactError(
            "member cannot be read", where=_member_path(path, name), found=error, next_command=REMAKE
        ) from error
    if rest or len(data) > limit or (size is not None and len(data) != size):
        found = f"{len(data)} bytes or more" if len(data) > limit else f"{len(data)} bytes"
        raise ArtifactError(
            "member has an unexpected size", where=_member_path(path, name), found=found, allowed=limit, next_command=REMAKE
        )
    return data


def _check_entries(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse entries of another format than written here: links, encrypted ones, other compression methods."""
    for entry in entries:
        if (entry.compress_type, entry.external_attr, entry.flag_bits) != (zipfile.ZIP_DEFLATED, _MODE, 0):
            found = f"method {entry.compress_type}, attributes {entry.external_attr:#x}, flags {entry.flag_bits:#x}"
            where, allowed = _member_path(path, entry.filename), "as `ufovit bundle` writes it"
            raise ArtifactError("member has an unexpected ZIP entry format", where=where, found=found, allowed=allowed)


def _check_names(path: Path, info: BundleInfo, names: Sequence[str]) -> None:
    """Refuse unknown, duplicate, unlisted and missing names, and too large sizes."""
    known = {BUNDLE, info.graph, *_ALWAYS, *_SOMETIMES, *CLASSIFIED}
    unknown = sorted(name for name in {*names, *info.members} - known if not is_answer(name))
    if unknown or info.graph not in _GRAPHS:
        allowed = ", ".join(sorted({BUNDLE, *_GRAPHS, *_ALWAYS, *_SOMETIMES, *CLASSIFIED, FIRST_OUTPUT}))
        raise ArtifactError(
            "a bundle has no such member", where=path, found=repr((unknown or [info.graph])[0]), allowed=allowed
        )
    duplicate = sorted(name for name, count in Counter(names).items() if count > 1)
    listed = {BUNDLE, *info.members}
    answers = {FIRST_OUTPUT} if FIRST_OUTPUT in names else CLASSIFIED
    unlisted, missing = sorted(set(names) - listed), sorted((listed | {*_ALWAYS, *answers, info.graph}) - set(names))
    if duplicate or unlisted or missing:
        found = f"twice {', '.join(duplicate)}; not listed {', '.join(unlisted)}; missing {', '.join(missing)}"
        raise ArtifactError("the bundle's members do not match bundle.json", where=path, found=found, next_command=REMAKE)


def _check_unpacked(path: Path, info: BundleInfo, size: int) -> None:
    """Refuse a bundle of `size` bytes whose members would fill the memory when they are unpacked."""
    total = sum(record.bytes for record in info.members.values())
    allowed = min(_LARGEST_BYTES, _ALWAYS_UNPACKED + _LARGEST_RATIO * size)
    if total > allowed or any(record.bytes < 0 for record in info.members.values()):
        raise ArtifactError("the bundle is too large when unpacked", where=path, found=f"{total} bytes", allowed=allowed)


def _body_sha256(path: Path) -> str:
    """SHA-256 of a file without its last 64 bytes, which are the archive's comment."""
    left = path.stat().st_size - 64
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while left > 0 and (chunk := stream.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
