"""Load an engine: compare its manifest with this machine, then deserialize the authenticated bytes."""

from dataclasses import dataclass

from calib.errors import ArtifactError
from edge.runtime.device_memory import DeviceMemory
from edge.runtime.open_device import open_device
from edge.runtime.trt_runner import TrtRunner
from engines.build_folder.authenticate import check_runs_here
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest
from engines.targets import CPU_BACKENDS, TARGETS
from engines.trt.api import Flavour, version


@dataclass(frozen=True)
class EngineDevice:
    """The library and the GPU that run an engine on this machine.

    `version_compatible`: whether a later release than the one that built the engine may load it.
    """

    flavour: Flavour
    memory: DeviceMemory
    version_compatible: bool

    def load(self, engine: bytes) -> TrtRunner:
        """Deserialize an engine: pass only bytes that `BuildFolder.engine` or `read_authenticated` returned."""
        return TrtRunner(self.flavour, engine, self.memory, version_compatible=self.version_compatible)


def open_engine(build: BuildFolder) -> TrtRunner:
    """Load the engine of a build on this machine's GPU; the bytes that are deserialized are those that were hashed.

    Raises ArtifactError for an engine that does not match its record; else as `engine_device` does.
    """
    return engine_device(build.manifest).load(build.engine())


def engine_device(manifest: EngineManifest | None) -> EngineDevice:
    """Library and GPU for the engine of a manifest; None for an engine without a manifest.

    Raises ArtifactError for an engine of a CPU; MissingError without the library or a GPU, and where the engine was built by
    another release or for another GPU.
    """
    flavour, memory = engine_flavour(manifest), open_device()
    if manifest is None:
        return EngineDevice(flavour, memory, version_compatible=False)
    check_runs_here(manifest, backend_version=version(flavour), compute_capability=memory.compute_capability)
    return EngineDevice(flavour, memory, manifest.engine.version_compatible)


def engine_flavour(manifest: EngineManifest | None) -> Flavour:
    """The library that runs an engine; TensorRT for one without a manifest. Raises ArtifactError for an engine of a CPU."""
    if manifest is None or manifest.engine.backend == "trt":
        return "trt"
    if manifest.engine.backend in CPU_BACKENDS:
        found, allowed = f"backend {manifest.engine.backend}", "trt, trt_rtx, torch_trt"
        raise ArtifactError("the engine was not built for a GPU", where=manifest.engine.file, found=found, allowed=allowed)
    target = TARGETS.get(manifest.target)
    built_here = manifest.engine.backend == "torch_trt" and target is not None and target.built_on == "device"
    return "trt" if built_here else "rtx"
