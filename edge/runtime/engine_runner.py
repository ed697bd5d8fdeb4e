"""The runner of an engine in a build folder: authenticated, held against this machine, then loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import InputError
from engines.targets import TARGETS

if TYPE_CHECKING:
    from edge.runtime.device_memory import DeviceMemory
    from edge.runtime.trt_runner import TrtRunner
    from engines.build_folder.manifest import EngineManifest
    from engines.trt.api import Flavour


def open_engine(
    folder: Path,
    *,
    public_key: Path | None = None,
    unsafe_no_manifest: bool = False,
) -> TrtRunner:
    """Load the engine of a build folder on this machine's GPU.

    The bytes that are hashed are the bytes that are deserialized. Raises InputError for an engine that is not the recorded
    one, or is none for a GPU; MissingError without the library or a GPU, and where the engine was built by another release or
    for another GPU.
    """
    from edge.runtime.trt_runner import TrtRunner

    engine = authenticate(folder, public_key=public_key, unsafe_no_manifest=unsafe_no_manifest)
    return TrtRunner(engine.flavour, engine.data, engine.memory, version_compatible=engine.version_compatible)


@dataclass(frozen=True)
class AuthenticEngine:
    """An engine that was authenticated and that this machine can run, not yet loaded.

    Attributes:
        manifest: None for one that nothing describes.
        data: its bytes, as they were hashed.
        flavour: the library that runs it.
        memory: the GPU.
    """

    manifest: EngineManifest | None
    data: bytes
    flavour: Flavour
    memory: DeviceMemory

    @property
    def version_compatible(self) -> bool:
        """Whether it may be loaded by a later release than the one that built it."""
        return self.manifest is not None and self.manifest.engine.version_compatible


def authenticate(path: Path, *, public_key: Path | None = None, unsafe_no_manifest: bool = False) -> AuthenticEngine:
    """The engine at `path`, a build folder or an engine file, held against this machine. Raises as `open_engine` does."""
    from edge.runtime.open_device import open_device
    from engines.build_folder.authenticate import check_runs_here, read_authenticated
    from engines.trt.api import version

    manifest, data = read_authenticated(path, public_key=public_key, unsafe_no_manifest=unsafe_no_manifest)
    flavour, memory = engine_flavour(manifest), open_device()
    if manifest is not None:
        check_runs_here(manifest, backend_version=version(flavour), compute_capability=memory.compute_capability)
    return AuthenticEngine(manifest, data, flavour, memory)


def engine_flavour(manifest: EngineManifest | None) -> Flavour:
    """The library that runs an engine; TensorRT for one that nothing describes. Raises InputError for an engine of a CPU."""
    if manifest is None or manifest.engine.backend == "trt":
        return "trt"
    if manifest.engine.backend == "ort":
        found, allowed = f"backend {manifest.engine.backend}", "trt, trt_rtx, torch_trt"
        raise InputError("no engine for a GPU", where=manifest.engine.file, found=found, allowed=allowed)
    target = TARGETS.get(manifest.target)
    built_here = manifest.engine.backend == "torch_trt" and target is not None and target.built_on == "device"
    return "trt" if built_here else "rtx"
