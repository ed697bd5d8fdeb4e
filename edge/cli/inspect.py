"""`ufovit inspect`: show any artifact in readable form."""

from pathlib import Path

from calib.errors import UsageError
from edge.cli.console import SafeConsole


def inspect(
    file: Path, /, *, layers: bool = False, require_signature: Path | None = None, unsafe_no_manifest: bool = False
) -> int:
    """Show the content of an artifact or a build folder. Without --layers an engine is read, never loaded.

    Args:
        file: A build folder, or an artifact, ONNX file, checkpoint, bundle or engine
        layers: Load the engine on this machine's GPU and list its layers
        require_signature: With --layers: PEM file of the public key that must have signed it
        unsafe_no_manifest: With --layers: load an engine that no manifest describes
    """
    if layers:
        from edge.inspect.describe_engine_layers import describe_layers

        described = describe_layers(file, public_key=require_signature, unsafe_no_manifest=unsafe_no_manifest)
        SafeConsole(soft_wrap=True).print(described)
        return 0
    if require_signature is not None or unsafe_no_manifest:
        raise UsageError(
            "--require-signature and --unsafe-no-manifest apply to loading an engine only",
            where="--layers",
            allowed="with --layers",
            next_command="ufovit verify PATH",
        )
    from edge.inspect.describers import describe_file

    SafeConsole(soft_wrap=True).print(describe_file(file))
    return 0
