"""What TensorRT is told beyond the graph, as a user asks for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from calib.errors import InputError
from engines import hardware
from engines.build_spec import BuilderOptions, HardwareCompatibility
from engines.targets import Target
from engines.trt.timing_cache import TimingCache

_MIB = 1 << 20
_FLAGS = {
    "optimization_level": "--optimization-level",
    "workspace_mib": "--workspace",
    "version_compatible": "--version-compatible",
    "hardware_compatibility": "--hardware-compatibility",
    "timing_cache": "--timing-cache",
    "pin_timing_cache": "--pin-timing-cache",
}
_TAKEN = {"trt": tuple(_FLAGS), "trt_rtx": ("optimization_level",), "torch_trt": ("optimization_level",)}
"""Backend -> the options that it knows; every other knows none."""


@dataclass(frozen=True)
class BuilderRequest:
    """Builder options; see `engines.build_spec.BuilderOptions`.

    Attributes:
        optimization_level: 0 to 5; None for TensorRT's default.
        workspace_mib: most device memory that a kernel may use for itself, MiB; None for the target's limit.
        version_compatible: the engine loads in later releases too.
        hardware_compatibility: which other GPUs it runs on.
        timing_cache: file that builds share; None for timing-TARGET.cache beside the build folders.
        pin_timing_cache: refuse to measure anything anew.
    """

    optimization_level: int | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    timing_cache: Path | None = None
    pin_timing_cache: bool = False

    def __post_init__(self) -> None:
        self._options(b"pinned" if self.pin_timing_cache else None)  # refuses values out of range

    def check(self, target: Target, out: Path) -> None:
        """Raise InputError for an option that the target does not have, and for a timing cache that cannot be used."""
        self.options(target, out)

    def options(self, target: Target, out: Path) -> BuilderOptions:
        """The options with the timing cache's bytes. Raises InputError like `check`."""
        taken = _TAKEN.get(target.backend, ())
        odd = [f.name for f in fields(self) if getattr(self, f.name) != f.default and f.name not in taken]
        if odd:
            raise InputError(
                f"target {target.name} does not have this builder option",
                found=", ".join(_FLAGS[name] for name in odd),
                allowed=", ".join(_FLAGS[name] for name in taken) or "none: a target that is built with TensorRT has them",
            )
        return self._options(self.cache(target, out).read() if target.backend == "trt" else None)

    def cache(self, target: Target, out: Path) -> TimingCache:
        """The timing cache that builds for a target share."""
        return TimingCache(self.timing_cache or out.parent / f"timing-{target.name}.cache", self.pin_timing_cache)

    def as_json(self, target: Target, out: Path) -> dict[str, Any]:
        """What decides about an engine; the GPU of this machine only where it is what the engine is for."""
        gpus = [asdict(gpu) for gpu in hardware.gpus()] if target.backend == "trt" else []
        return {**asdict(self), "timing_cache": self.cache(target, out).pinned_sha256(), "gpus": gpus}

    def _options(self, cache: bytes | None) -> BuilderOptions:
        return BuilderOptions(
            optimization_level=self.optimization_level,
            workspace_bytes=None if self.workspace_mib is None else self.workspace_mib * _MIB,
            version_compatible=self.version_compatible,
            hardware_compatibility=self.hardware_compatibility,
            timing_cache=cache,
            pin_timing_cache=self.pin_timing_cache,
        )


DEFAULT_BUILDER = BuilderRequest()
