"""Who vouches for a build: an Ed25519 signature (RFC 8032) over the digest of every file.

    message     DOMAIN + canonical JSON of signature.json without its field `signature`
    signature   base64 of the 64 bytes of Ed25519(private key, message)

A folder is signed by signature.json in it, a single file by FILE.sig beside it; both have the same fields. The files are bound
by their digests and their names, so that no part of one build passes in another. A whole older build that was signed with the
same key still passes: `signed` tells when that was, and nothing here knows that there is a newer one.

Importing this needs the standard library alone; signing and checking need `cryptography`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from calib.artifact import SCHEMA_VERSION
from calib.errors import InputError
from calib.files import canonical_json, write_json
from engines.build_folder.bundle_format import SUFFIX as BUNDLE_SUFFIX
from engines.build_folder.bundle_format import verify_bundle
from engines.build_folder.file_names import ARTIFACTS, RECORD, SIGNATURE
from engines.build_folder.keys import fingerprint, load_private_key, load_public_key
from engines.build_folder.safe_files import compare, inside, is_there, parse_artifact, read_contained, sha256_contained
from engines.build_folder.verify import verify_folder

ALGORITHM = "Ed25519"
DOMAIN = b"ufovit-edge signature 1\n"
"""In front of what is signed, so that no signature made for anything else passes for one of ours, nor ours for another."""
SUFFIX = ".sig"


@dataclass(frozen=True)
class Signature:
    """signature.json, or FILE.sig.

    Attributes:
        algorithm: "Ed25519".
        public_key: hex SHA-256 of the DER SubjectPublicKeyInfo of the key that checks it.
        signed: ISO 8601 time in UTC, as the signer's clock had it.
        files: name -> SHA-256 of every file that is vouched for.
        signature: base64.
    """

    algorithm: str
    public_key: str
    signed: str
    files: dict[str, str]
    signature: str

    @property
    def message(self) -> bytes:
        """The bytes that are signed."""
        fields = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        del fields["signature"]
        return DOMAIN + canonical_json(fields)


def signature_path(path: Path) -> Path:
    """Where the signature of a folder or of a file lies."""
    return path / SIGNATURE if path.is_dir() else path.with_name(path.name + SUFFIX)


def sign(path: Path, key_path: Path, *, passphrase_file: Path | None = None) -> Signature:
    """Sign a build folder or a single file, and write the signature; an earlier one is replaced.

    Folders and bundles are verified first. Raises InputError for one that does not verify and for a key that cannot sign;
    MissingError without `cryptography`.
    """
    private = load_private_key(key_path, passphrase_file)
    if path.is_dir():
        files = {checked.file: checked.sha256 for checked in verify_folder(path).files}
    elif path.suffix == BUNDLE_SUFFIX:
        bundle, _ = verify_bundle(path)
        files = {path.name: bundle.sha256}
    else:
        files = {path.name: sha256_contained(path)}
    public_key, now = fingerprint(private.public_key()), datetime.now(timezone.utc).isoformat(timespec="seconds")
    unsigned = Signature(ALGORITHM, public_key, now, files, "")
    made = replace(unsigned, signature=base64.b64encode(private.sign(unsigned.message)).decode())
    write_json(signature_path(path), _fields(made))
    return made


def check_signature(path: Path, public_key_path: Path) -> Signature:
    """The signature of a build folder or a single file, once it holds: first itself, then the digest of every file.

    Raises:
        InputError: no signature, one of another key, one that does not hold, and, each named, a listed file that is missing or
            differs and an artifact that is not listed. As in `engines.build_folder.manifest`, what does not match is bad input.
        MissingError: `cryptography` is not installed.
    """
    signature = read_signature(path, public_key_path)
    where = signature_path(path)
    if not path.is_dir():
        check_listed(signature, where, {path.name: sha256_contained(path)})
        if len(signature.files) > 1:
            raise InputError("signature of a folder beside a single file", where=where, next_command=_again(path))
        return signature
    for name, sha256 in signature.files.items():
        file = inside(path, name, SIGNATURE)
        compare(file, sha256_contained(file), sha256, SIGNATURE, remake=_again(path))
    for name in (RECORD, *ARTIFACTS):
        if name not in signature.files and name != SIGNATURE and is_there(path / name):
            raise InputError(
                "file was added after the signature",
                where=path / name,
                allowed=f"the {len(signature.files)} files that {SIGNATURE} lists",
                next_command=f"move the file away, or {_again(path)}",
            )
    return signature


def read_signature(path: Path, public_key_path: Path) -> Signature:
    """The signature of a folder or file if it is one of this key over its own list; the files are not looked at.

    Raises InputError when it is missing, malformed, of another key, or does not hold; MissingError without `cryptography`.
    """
    public = load_public_key(public_key_path)
    from cryptography.exceptions import InvalidSignature

    where = signature_path(path)
    if not is_there(where):
        raise InputError("not signed", where=path, allowed=f"a signature in {where.name}", next_command=_again(path))
    signature, raw = _parse(read_contained(where), where, _again(path))
    expected = fingerprint(public)
    if signature.public_key != expected:
        raise InputError(
            "signed with another key",
            where=where,
            found=f"key {signature.public_key[:16]}...",
            allowed=f"key {expected[:16]}... of {public_key_path}",
            next_command=_again(path),
        )
    try:
        public.verify(raw, signature.message)
    except InvalidSignature as error:
        raise InputError("signature does not hold", where=where, next_command=_again(path)) from error
    return signature


def check_listed(signature: Signature, where: Path, digests: Mapping[str, str]) -> None:
    """Raise InputError unless a signature lists each of these files with its digest; `where` is the signature's file."""
    for name, sha256 in digests.items():
        if name not in signature.files:
            raise InputError(
                "file is not among those that were signed",
                where=where.with_name(name),
                allowed=", ".join(sorted(signature.files)),
                next_command="ufovit sign PATH --key PRIVATE.pem",
            )
        compare(where.with_name(name), sha256, signature.files[name], where.name)


def _parse(data: bytes, path: Path, remake: str) -> tuple[Signature, bytes]:
    """The signature that bytes hold, and its 64 bytes. The same in other bytes is refused, so that every change shows."""
    signature = parse_artifact(data, path, Signature, remake=remake)
    try:
        raw = base64.b64decode(signature.signature, validate=True)
        exact = base64.b64encode(raw).decode() == signature.signature and canonical_json(_fields(signature)) == data
    except (binascii.Error, ValueError):
        exact = False
    if not exact or signature.algorithm != ALGORITHM:
        raise InputError(
            "malformed signature", where=path, allowed=f"{ALGORITHM}, as `ufovit sign` writes it", next_command=remake
        )
    return signature, raw


def _fields(signature: Signature) -> dict[str, object]:
    return {"schema_version": SCHEMA_VERSION, **asdict(signature)}


def _again(path: Path) -> str:
    return f"ufovit sign {path} --key PRIVATE.pem"
