"""Load Ed25519 keys from PEM files of openssl. The package `cryptography` is imported when a key is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import MissingError, UsageError
from calib.files import open_regular, sha256_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAKE_PRIVATE = "openssl genpkey -algorithm ed25519 -out key.pem && chmod 600 key.pem"
MAKE_PUBLIC = "openssl pkey -in key.pem -pubout -out key.pub.pem"
_LARGEST_KEY = 1 << 16
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def load_private_key(path: Path, passphrase_file: Path | None = None) -> Ed25519PrivateKey:
    """The private key that signs.

    Args:
        path: a PEM file that only its owner can read.
        passphrase_file: a file, likewise, whose first line is the passphrase; None for a key that is not encrypted.

    Raises:
        UsageError: a file that is missing, readable by other users, or without an Ed25519 private key; a passphrase that is
            missing, wrong or not needed. The text names the command that resolves it.
        MissingError: `cryptography` is not installed.
    """
    ed25519, serialization = _cryptography()
    data = _read(path, f"{MAKE_PRIVATE} && {MAKE_PUBLIC}", secret=True)
    passphrase = None
    if passphrase_file is not None:
        passphrase = read_secret_line(passphrase_file, "write the passphrase into it, and chmod 600")
    if b"PUBLIC KEY-----" in data:
        raise UsageError("a public key cannot sign", where=path, allowed="the private key", next_command=MAKE_PRIVATE)
    load = partial(serialization.load_pem_private_key, data, passphrase)
    private: Ed25519PrivateKey = _parsed(path, load, ed25519.Ed25519PrivateKey, MAKE_PRIVATE)
    return private


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The public key that checks signatures.

    Raises UsageError for a file that is missing or does not hold an Ed25519 public key, MissingError without `cryptography`.
    """
    ed25519, serialization = _cryptography()
    data = _read(path, MAKE_PUBLIC, secret=False)
    if b"PRIVATE KEY-----" in data:
        raise UsageError(
            "expected a public key, found a private key: keep it with the signer",
            where=path,
            allowed="its public key",
            next_command=MAKE_PUBLIC,
        )
    load = partial(serialization.load_pem_public_key, data)
    public: Ed25519PublicKey = _parsed(path, load, ed25519.Ed25519PublicKey, MAKE_PUBLIC)
    return public


def read_secret_line(path: Path, make: str) -> bytes:
    """First line of a file that only its owner can read. Raises UsageError, naming the command `make`, as for a private key."""
    return _read(path, make, secret=True).partition(b"\n")[0].rstrip(b"\r")


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


def _read(path: Path, make: str, *, secret: bool) -> bytes:
    """Content of a file; only its owner may read a secret one. The permissions are those of the opened file."""
    with open_regular(path, UsageError, largest=_LARGEST_KEY, remake=make) as stream:
        data, mode = stream.read(_LARGEST_KEY), os.fstat(stream.fileno()).st_mode
    if secret and mode & _OTHERS:
        raise UsageError(
            "other users can read this secret",
            where=path,
            found=f"mode {stat.S_IMODE(mode):04o}",
            allowed="0600 or 0400",
            next_command=f"chmod 600 {path}",
        )
    return data


def _parsed(path: Path, load: Callable[[], Any], kind: type, make: str) -> Any:
    """The key that `load` reads from a PEM file. Raises UsageError for its errors and for a key of another type than `kind`."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        key = load()
    except TypeError as error:  # a passphrase for a plain key, or none for an encrypted one
        hint = "pass --passphrase-file for an encrypted key, and for no other"
        raise UsageError("the passphrase does not match the key", where=path, found=error, next_command=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:  # not PEM, or a wrong passphrase
        raise UsageError(
            "not a PEM key as openssl writes it, or the wrong passphrase", where=path, found=error, next_command=make
        ) from error
    if not isinstance(key, kind):
        found = type(key).__name__.strip("_").replace("PrivateKey", "").replace("PublicKey", "")
        raise UsageError("not an Ed25519 key", where=path, found=f"{found} key", allowed="Ed25519", next_command=MAKE_PRIVATE)
    return key
