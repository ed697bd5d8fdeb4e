"""`ufovit sign`: sign a build folder or a bundle."""

import contextlib
from pathlib import Path

from edge.cli.console import terminal_progress
from engines.build_folder.signature import signature_path
from engines.build_folder.signing import sign as sign_files


def sign(path: Path, /, *, key: Path, passphrase_file: Path | None = None) -> int:
    """Sign a build: signature.json in its folder, FILE.sig beside a single file. Folders and bundles are verified first.

    Check it with `ufovit verify PATH --require-signature PUBLIC_KEY`.

    Exit codes: 0 signed, 2 bad input, 4 something this machine lacks.

    Args:
        path: A build folder, or a single file such as a bundle
        key: PEM file of an Ed25519 private key (openssl genpkey -algorithm ed25519) that only you can read
        passphrase_file: File whose first line is the passphrase of an encrypted key
    """
    from edge.pipeline.workspace import locked

    say = terminal_progress().say
    with locked(path, say) if path.is_dir() else contextlib.nullcontext():
        signature = sign_files(path, key, passphrase_file=passphrase_file)
    count = len(signature.files)
    say(f"{signature_path(path)}: {count} file{'s' * (count > 1)} signed with key {signature.public_key[:16]}...")
    return 0
