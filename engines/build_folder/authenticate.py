"""Authenticate an engine before it is deserialized, and check that it can run on this machine.

Engine files are executable code. Standard library only; a signature needs `cryptography`.
"""

import sys
from pathlib import Path

from calib.errors import ArtifactError, MissingError
from calib.files import sha256_bytes
from calib.printable import printable
from engines.build_folder.file_names import ENGINES, MANIFEST
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest, EngineRecord
from engines.build_folder.safe_files import REMAKE, is_there, read_contained
from engines.build_folder.signature import check_listed, read_signature, signature_path
from engines.targets import CPU_BACKENDS

UNSAFE = "--unsafe-no-manifest"
_AMPERE = (8, 0)


def read_authenticated(
    path: Path, *, public_key: Path | None = None, unsafe_no_manifest: bool = False
) -> tuple[EngineManifest | None, bytes]:
    """The manifest of an engine and the engine's bytes, hashed as read: deserialize these bytes and no others.

    Args:
        path: a build folder, or an engine file in it.
        public_key: a PEM file; the manifest and the engine must be among the files that its owner signed. Other files of the
            build are not read and may be missing.
        unsafe_no_manifest: accept an engine without a manifest, with a warning on stderr. An engine that contradicts its
            manifest is still refused. With `public_key`, the signature must then be the file's own, FILE.sig.

    Raises:
        ArtifactError: no manifest, or an engine or a signature that does not match.
        MissingError: `cryptography` is needed and not installed.
    """
    if not is_there(path):
        raise ArtifactError("no such build folder or engine", where=path, next_command=REMAKE)
    folder = path if path.is_dir() else path.parent
    if not is_there(folder / MANIFEST):
        return None, _undescribed(path, public_key, unsafe_no_manifest)
    build = BuildFolder(folder, require_signature=public_key)
    manifest = build.manifest
    if path != folder and path.name != manifest.engine.file:
        raise ArtifactError(
            "the manifest in this folder describes another engine",
            where=path,
            allowed=manifest.engine.file,
            next_command=f"pass the folder {folder}, or move the file into a folder of its own",
        )
    return manifest, build.engine()


def _undescribed(path: Path, public_key: Path | None, allowed: bool) -> bytes:
    """Bytes of an engine without a manifest, if `allowed`; in a folder, of its only engine."""
    files = [path / name for name in ENGINES if is_there(path / name)] if path.is_dir() else [path]
    if len(files) != 1:
        raise ArtifactError(
            "the folder holds no engine" if not files else "the folder holds several engines",
            where=path,
            found=f"no {MANIFEST}",
            allowed="a build folder, or an engine file",
            next_command=REMAKE,
        )
    file = files[0]
    if not allowed:
        raise ArtifactError(
            "refusing to load an engine without a manifest: engine files are executable code",
            where=file,
            allowed=f"a build folder with its {MANIFEST}",
            next_command=f"{REMAKE}, or {UNSAFE} for an engine that you built yourself",
        )
    engine = read_contained(file)
    if public_key is not None:
        check_listed(read_signature(file, public_key), signature_path(file), {file.name: sha256_bytes(engine)})
    warning = f"{file} has no manifest. Its origin is unknown, and loading it executes the code that it holds ({UNSAFE})"
    print(f"UNSAFE: {printable(warning)}", file=sys.stderr)
    return engine


def check_runs_here(manifest: EngineManifest, *, backend_version: str, compute_capability: str) -> None:
    """Raise MissingError for an engine that this machine cannot load. An engine for the CPU always passes.

    Args:
        backend_version: of the library that would load it.
        compute_capability: "major.minor" of the GPU that would run it, "" without one.

    A plan loads in the release that built it; if built version compatible, also in later ones of the same major version
    (TensorRT documentation, "Version Compatibility"). It runs on the GPUs that the manifest lists; if built for "ampere_plus",
    on every one of compute capability 8.0 or newer (ibid., "Hardware Compatibility").
    """
    engine = manifest.engine
    if engine.backend in CPU_BACKENDS:
        return
    rebuild = f"ufovit build {manifest.source} {manifest.precision} --target {manifest.target}, on this machine"
    if not _loads_in(engine, backend_version):
        later = " or later of the same major version" if engine.version_compatible else ""
        raise MissingError(
            "the engine was built by another release of its library",
            where=engine.file,
            found=f"{engine.backend} {backend_version or 'of no version'} here",
            allowed=f"{engine.backend} {engine.backend_version}{later}",
            next_command=f"install that release, or {rebuild}",
        )
    if engine.hardware_compatibility == "ampere_plus":
        runs_here, supported = _numbers(compute_capability) >= _AMPERE, "8.0 or newer"
    else:
        runs_here = compute_capability in engine.compute_capabilities
        supported = ", ".join(engine.compute_capabilities) or "none: the manifest lists no GPU"
    if not runs_here:
        built_on = f", built on {engine.device}" if engine.device else ""
        raise MissingError(
            "the engine was built for another GPU",
            where=engine.file,
            found=f"compute capability {compute_capability}" if compute_capability else "no GPU here",
            allowed=f"compute capability {supported}{built_on}",
            next_command=rebuild,
        )


def _loads_in(engine: EngineRecord, version: str) -> bool:
    if version == engine.backend_version:
        return True
    here, built = _numbers(version), _numbers(engine.backend_version)
    return engine.version_compatible and bool(here and built) and here[0] == built[0] and here >= built


def _numbers(version: str) -> tuple[int, ...]:
    """(10, 3, 0) of "10.3.0"; empty for anything but numbers and dots."""
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts) else ()
