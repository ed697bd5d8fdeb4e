"""Sign a build folder or a file, and check a signature with every file that it lists; see `engines.build_folder.signature`."""

import base64
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from calib.artifact import write_artifact
from calib.errors import ArtifactError
from engines.build_folder.bundle_format import SUFFIX as BUNDLE_SUFFIX
from engines.build_folder.bundle_format import verify_bundle
from engines.build_folder.file_names import ARTIFACTS, RECORD, SIGNATURE
from engines.build_folder.folder import BuildFolder
from engines.build_folder.keys import fingerprint, load_private_key
from engines.build_folder.safe_files import check_digest, inside, sha256_contained
from engines.build_folder.signature import (
    ALGORITHM,
    Signature,
    check_listed,
    read_signature,
    sign_command,
    signature_path,
)
from engines.build_folder.verify import verify_folder


def sign(path: Path, key_path: Path, *, passphrase_file: Path | None = None) -> Signature:
    """Sign a build folder or a single file, and write the signature; an earlier one is replaced.

    Folders and bundles are verified first. Raises ArtifactError if that fails, UsageError for an unusable key,
    MissingError without `cryptography`.
    """
    private = load_private_key(key_path, passphrase_file)
    if path.is_dir():
        verified = verify_folder(BuildFolder(path))
        files = {checked.file: checked.sha256 for checked in verified if checked.file in (RECORD, *ARTIFACTS)}
    elif path.suffix == BUNDLE_SUFFIX:
        files = {path.name: verify_bundle(path).sha256}
    else:
        files = {path.name: sha256_contained(path)}
    public_key, now = fingerprint(private.public_key()), datetime.now(timezone.utc).isoformat(timespec="seconds")
    unsigned = Signature(ALGORITHM, public_key, now, files, "")
    signed = replace(unsigned, signature=base64.b64encode(private.sign(unsigned.message)).decode())
    write_artifact(signature_path(path), signed)
    return signed


def check_signature(path: Path, public_key_path: Path) -> Signature:
    """Check the signature of a build folder or a single file, then the digest of every signed file.

    Raises:
        ArtifactError: a missing or invalid signature, or one of another key; a listed file that is missing or differs; an
            artifact that is not listed.
        MissingError: `cryptography` is not installed.
    """
    if path.is_dir():
        return check_folder_signature(BuildFolder(path), public_key_path)
    signature, where = read_signature(path, public_key_path), signature_path(path)
    check_listed(signature, where, {path.name: sha256_contained(path)})
    if len(signature.files) > 1:
        raise ArtifactError("signature of a folder beside a single file", where=where, next_command=sign_command(path))
    return signature


def check_folder_signature(build: BuildFolder, public_key_path: Path) -> Signature:
    """The same for a build folder. A file that was read or verified already is not hashed again."""
    path = build.path
    signature = read_signature(path, public_key_path)
    for name, sha256 in signature.files.items():
        file = inside(path, name, SIGNATURE)
        actual = build.digests.get(name) or sha256_contained(file)
        check_digest(file, actual, sha256, SIGNATURE, remake=sign_command(path))
    for name in (RECORD, *ARTIFACTS):
        if name not in signature.files and name != SIGNATURE and build.has(name):
            raise ArtifactError(
                "file was added after the signature",
                where=path / name,
                allowed=f"the {len(signature.files)} files that {SIGNATURE} lists",
                next_command=f"move the file away, or {sign_command(path)}",
            )
    return signature
