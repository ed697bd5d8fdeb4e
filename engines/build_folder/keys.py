"""Ed25519 keys in PEM files, as openssl makes them. The package `cryptography` is imported when a key is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import InputError, MissingError
from calib.files import sha256_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAKE_PRIVATE = "openssl genpkey -algorithm ed25519 -out key.pem && chmod 600 key.pem"
MAKE_PUBLIC = "openssl pkey -in key.pem -pubout -out key.pub.pem"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def load_private_key(path: Path, passphrase_file: Path | None = None) -> Ed25519PrivateKey:
    """The private key that signs.

    Args:
        path: a PEM file that only its owner can read.
        passphrase_file: a file, likewise, whose first line opens an encrypted key; None for a key that is not encrypted.

    Raises:
        InputError: a file that is missing, that others can read, or that holds no Ed25519 private key; a passphrase that is
            missing, wrong or not needed. The text names the command that mends it.
        MissingError: `cryptography` is not installed.
    """
    ed25519, serialization = _cryptography()
    data = _secret(path, f"{MAKE_PRIVATE} && {MAKE_PUBLIC}")
    passphrase = None
    if passphrase_file is not None:
        passphrase = _secret(passphrase_file, "write the passphrase into it, and chmod 600").partition(b"\n")[0].rstrip(b"\r")
    if b"PUBLIC KEY-----" in data:
        raise InputError("a public key cannot sign", where=path, allowed="the private key", next_command=MAKE_PRIVATE)
    key = _parsed(path, lambda: serialization.load_pem_private_key(data, passphrase), MAKE_PRIVATE)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _another_kind(path, key, MAKE_PRIVATE)
    private: Ed25519PrivateKey = key
    return private


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The public key that signatures are held against.

    Raises InputError for a file that is missing or holds no Ed25519 public key, MissingError without `cryptography`.
    """
    ed25519, serialization = _cryptography()
    data = _content(path, MAKE_PUBLIC)
    if b"PRIVATE KEY-----" in data:
        raise InputError(
            "this is the private key: it stays with whoever signs",
            where=path,
            allowed="its public key",
            next_command=MAKE_PUBLIC,
        )
    key = _parsed(path, lambda: serialization.load_pem_public_key(data), MAKE_PUBLIC)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _another_kind(path, key, MAKE_PRIVATE)
    public: Ed25519PublicKey = key
    return public


def fingerprint(key: Ed25519PublicKey) -> str:
    """Hex SHA-256 of the DER SubjectPublicKeyInfo: `openssl pkey -pubin -in key.pub.pem -outform DER | sha256sum`."""
    _, serialization = _cryptography()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256_bytes(key.public_bytes(serialization.Encoding.DER, form))


def _cryptography() -> tuple[Any, Any]:
    """The modules `ed25519` and `serialization`. Raises MissingError naming the extra."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingError(
            "signatures need the package cryptography", found=error, next_command="pip install 'ufovit-edge[sign]'"
        ) from error
    return ed25519, serialization


def _secret(path: Path, make: str) -> bytes:
    """Content of a file that nobody but its owner may read; the permissions are those of the file that was opened."""
    data, mode = _opened(path, make)
    if mode & _OTHERS:
        raise InputError(
            "others can read this secret",
            where=path,
            found=f"mode {stat.S_IMODE(mode):04o}",
            allowed="0600 or 0400",
            next_command=f"chmod 600 {path}",
        )
    return data


def _content(path: Path, make: str) -> bytes:
    return _opened(path, make)[0]


def _opened(path: Path, make: str) -> tuple[bytes, int]:
    try:
        with path.open("rb") as stream:
            return stream.read(), os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise InputError("file cannot be read", where=path, found=error.strerror, next_command=make) from error


def _parsed(path: Path, load: Callable[[], Any], make: str) -> Any:
    """What `load` makes of a PEM file; its errors in our words."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load()
    except TypeError as error:  # a passphrase for a plain key, or none for an encrypted one
        hint = "pass --passphrase-file for an encrypted key, and for no other"
        raise InputError("key and passphrase do not fit", where=path, found=error, next_command=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:  # not PEM, or not to be opened with this passphrase
        raise InputError(
            "no PEM key of the kind that openssl makes, or the wrong passphrase", where=path, found=error, next_command=make
        ) from error


def _another_kind(path: Path, key: object, make: str) -> InputError:
    found = type(key).__name__.strip("_").replace("PrivateKey", "").replace("PublicKey", "")
    return InputError("not an Ed25519 key", where=path, found=f"{found} key", allowed="Ed25519", next_command=make)
