"""`ufovit sign`: vouch for a build folder, or for a bundle."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer


def sign(
    path: Annotated[Path, typer.Argument(help="A build folder, or a single file such as a bundle", show_default=False)],
    key: Annotated[
        Path,
        typer.Option(
            help="PEM file of an Ed25519 private key (openssl genpkey -algorithm ed25519) that only you can read",
            metavar="PRIVATE_KEY",
        ),
    ],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File whose first line opens an encrypted key", metavar="FILE", show_default=False)
    ] = None,
) -> int:
    """Sign a build: signature.json in its folder, FILE.sig beside a single file. Folders and bundles are verified first.

    Check it with `ufovit verify PATH --require-signature PUBLIC_KEY`.

    Exit codes: 0 signed, 2 bad input, 4 something that this machine lacks.
    """
    from rich.console import Console

    from edge.pipeline.workspace import locked
    from engines.build_folder.signature import signature_path
    from engines.build_folder.signing import sign as sign_files

    console = Console(soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    with locked(path, say) if path.is_dir() else contextlib.nullcontext():
        made = sign_files(path, key, passphrase_file=passphrase_file)
    count = len(made.files)
    say(f"{signature_path(path)}: {count} file{'s' * (count > 1)} signed with key {made.public_key[:16]}...")
    return 0
