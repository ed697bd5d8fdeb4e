"""`ufovit inspect`: any artifact, readable by a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calib.errors import InputError


def inspect(
    file: Annotated[Path, typer.Argument(help="A build folder, or an artifact, ONNX file, checkpoint, bundle or engine")],
    layers: Annotated[bool, typer.Option("--layers", help="Load the engine on this machine's GPU and list its layers")] = False,
    require_signature: Annotated[
        Path | None,
        typer.Option(
            help="With --layers: PEM file of the key that must have signed it", metavar="PUBLIC_KEY", show_default=False
        ),
    ] = None,
    unsafe_no_manifest: Annotated[
        bool, typer.Option("--unsafe-no-manifest", help="With --layers: load an engine that nothing vouches for")
    ] = False,
) -> int:
    """Show what a file is and says. Without --layers an engine is read, never loaded."""
    from rich.console import Console

    if layers:
        from edge.inspect.describe_engine_layers import describe_layers

        described = describe_layers(file, public_key=require_signature, unsafe_no_manifest=unsafe_no_manifest)
        Console(soft_wrap=True).print(described.renderable())
        return 0
    if require_signature is not None or unsafe_no_manifest:
        raise InputError(
            "these options are about loading an engine", allowed="with --layers", next_command="ufovit verify PATH"
        )
    from edge.inspect.describers import describe_file

    Console(soft_wrap=True).print(describe_file(file))
    return 0
