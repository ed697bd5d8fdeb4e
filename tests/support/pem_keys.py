"""Ed25519 keys in PEM files, laid out as RFC 8410 says, made from fixed seeds."""

from __future__ import annotations

import base64
import hashlib


def pem_pair(folder, name):
    """(private, public) files NAME.pem and NAME.pub.pem of a key that the name decides."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = hashlib.sha256(name.encode()).digest()
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    paths = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    ders = bytes.fromhex("302e020100300506032b657004220420") + seed, bytes.fromhex("302a300506032b6570032100") + public
    for path, der, what in zip(paths, ders, ("PRIVATE KEY", "PUBLIC KEY"), strict=True):
        path.write_text(f"-----BEGIN {what}-----\n{base64.b64encode(der).decode()}\n-----END {what}-----\n")
        path.chmod(0o600)
    return paths
