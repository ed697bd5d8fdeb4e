"""The signature of a build: Ed25519 (RFC 8032) over the digest of every file.

    message     DOMAIN + canonical JSON of signature.json without its field `signature`
    signature   base64 of the 64 bytes of Ed25519(private key, message)

A folder is signed by signature.json in it, a single file by FILE.sig beside it; both have the same fields. The signature
covers digests and names, so that a file of one build does not pass in another. A whole older build that was signed with the
same key still passes: `signed` is its date; replay of an old build is not detected.

`engines.build_folder.signing` creates signatures. Importing this needs the standard library alone; checking needs
`cryptography`.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from calib.artifact import SCHEMA_VERSION, parse_artifact
from calib.errors import ArtifactError
from calib.files import canonical_json
from engines.build_folder.file_names import SIGNATURE
from engines.build_folder.keys import fingerprint, load_public_key
from engines.build_folder.safe_files import check_digest, is_there, read_contained

ALGORITHM = "Ed25519"
DOMAIN = b"ufovit-edge signature 1\n"
"""Prefix of every signed message: a signature made for another purpose does not pass here, nor one of ours elsewhere."""
SUFFIX = ".sig"


@dataclass(frozen=True)
class Signature:
    """signature.json, or FILE.sig.

    Attributes:
        public_key: hex SHA-256 of the DER SubjectPublicKeyInfo of the key that checks it.
        signed: ISO 8601 time in UTC, by the signer's clock.
        files: name -> SHA-256 of every signed file.
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
        fields = _fields(self)
        del fields["signature"]
        return DOMAIN + canonical_json(fields)


def signature_path(path: Path) -> Path:
    """Path of the signature of a folder or a file."""
    return path / SIGNATURE if path.is_dir() else path.with_name(path.name + SUFFIX)


def read_signature(path: Path, public_key_path: Path) -> Signature:
    """The signature of a folder or file, checked with a key; the signed files are not read.

    Raises ArtifactError when it is missing, malformed, of another key, or invalid; MissingError without `cryptography`.
    """
    public = load_public_key(public_key_path)
    from cryptography.exceptions import InvalidSignature

    where = signature_path(path)
    if not is_there(where):
        raise ArtifactError("not signed", where=path, allowed=f"a signature in {where.name}", next_command=sign_command(path))
    signature, raw = _parse(read_contained(where), where, sign_command(path))
    expected = fingerprint(public)
    if signature.public_key != expected:
        raise ArtifactError(
            "signed with another key",
            where=where,
            found=f"key {signature.public_key[:16]}...",
            allowed=f"key {expected[:16]}... of {public_key_path}",
            next_command=sign_command(path),
        )
    try:
        public.verify(raw, signature.message)
    except InvalidSignature as error:
        raise ArtifactError("signature is invalid", where=where, next_command=sign_command(path)) from error
    return signature


def check_listed(signature: Signature, where: Path, digests: Mapping[str, str]) -> None:
    """Raise ArtifactError unless a signature lists each of these files with its digest; `where` is the signature's file."""
    for name, sha256 in digests.items():
        if name not in signature.files:
            raise ArtifactError(
                "file is not listed in the signature",
                where=where.with_name(name),
                allowed=", ".join(sorted(signature.files)),
                next_command=sign_command("PATH"),
            )
        check_digest(where.with_name(name), sha256, signature.files[name], where.name)


def _parse(data: bytes, path: Path, remake: str) -> tuple[Signature, bytes]:
    """The parsed signature, and its 64 bytes. Another encoding of the same content is refused, so that every change shows."""
    signature = parse_artifact(data, path, Signature, remake=remake)
    try:
        raw = base64.b64decode(signature.signature, validate=True)
        exact = base64.b64encode(raw).decode() == signature.signature and canonical_json(_fields(signature)) == data
    except ValueError:  # binascii.Error is one
        exact = False
    if not exact or signature.algorithm != ALGORITHM:
        raise ArtifactError(
            "malformed signature", where=path, allowed=f"{ALGORITHM}, as `ufovit sign` writes it", next_command=remake
        )
    return signature, raw


def _fields(signature: Signature) -> dict[str, object]:
    return {"schema_version": SCHEMA_VERSION, **asdict(signature)}


def sign_command(path: object) -> str:
    """The command that signs."""
    return f"ufovit sign {path} --key PRIVATE.pem"
