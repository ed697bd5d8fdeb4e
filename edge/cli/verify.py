"""`ufovit verify`: check every file of a build or a bundle against its recorded digest, and the signature."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from edge.cli.console import terminal_progress
from engines.build_folder.bundle_format import verify_bundle
from engines.build_folder.file_names import DRIFT
from engines.build_folder.folder import BuildFolder
from engines.build_folder.safe_files import is_there
from engines.build_folder.signature import Signature, signature_path
from engines.build_folder.signing import check_folder_signature, check_signature
from engines.build_folder.verify import CheckedFile, examine_folder


def verify(path: Path, /, *, require_signature: Path | None = None, partial: bool = False) -> int:
    """Recompute every digest of a build and compare the files with each other.

    Exit codes: 0 every file matches its record, 2 a file does not, 4 something this machine lacks.

    Args:
        path: A build folder, or a bundle
        require_signature: PEM file of a public key: refuse files that its owner did not sign
        partial: Require only the engine and its manifest of a folder; check the other files that are present
    """
    progress = terminal_progress()
    build = BuildFolder(path) if path.is_dir() else None
    files = _members(path) if build is None else examine_folder(build, complete=not partial)
    table = Table("file", "sha256", "status")
    for file in files:
        style = "green" if file.problem is None else "bold red"
        table.add_row(escape(file.file), file.sha256[:16], f"[{style}]{escape(file.status)}[/]")
    progress.console.print(table, highlight=False)
    signature = None
    if require_signature is not None and build is not None:
        signature = check_folder_signature(build, require_signature)
    elif require_signature is not None:
        signature = check_signature(path, require_signature)
    for file in files:
        if file.problem is not None:
            raise file.problem
    progress.say(_sentence(path, files, signature))
    return 0


def _members(path: Path) -> tuple[CheckedFile, ...]:
    """The bundle, which ends with the digest of all its bytes, then its members, checked."""
    bundle = verify_bundle(path)
    members = (CheckedFile(name, record.sha256) for name, record in bundle.info.members.items())
    return (CheckedFile(path.name, bundle.sha256), *members)


def _sentence(path: Path, files: tuple[CheckedFile, ...], signature: Signature | None) -> str:
    whole = f"{path}: {len(files)} files match their recorded digests and belong to one build"
    if path.is_dir() and DRIFT not in (file.file for file in files):
        whole += f"; no verdict on accuracy: no {DRIFT}"
    if signature is not None:
        return f"{whole}; signed {signature.signed} with key {signature.public_key[:16]}..."
    if is_there(signature_path(path)):
        return f"{whole}; the signature was not checked: pass --require-signature PUBLIC_KEY.pem"
    return f"{whole}; not signed"
