"""The TensorRT builder options of `ufovit build`."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from calib.errors import UsageError
from edge.option_bounds import WORKSPACE_MIB, check_bounds
from engines import hardware
from engines.build_spec import BuilderOptions, HardwareCompatibility
from engines.targets import Target
from engines.trt.timing_cache import TimingCache

_MIB = 1 << 20
_SUPPORTED = {"trt_rtx": ("optimization_level",), "torch_trt": ("optimization_level",)}
"""Backend -> the options that it supports; "trt" supports all, other backends none."""


@dataclass(frozen=True)
class BuilderRequest:
    """Builder options; see `engines.build_spec.BuilderOptions`. Each field is an option of `ufovit build`.

    Attributes:
        optimization_level: Effort of TensorRT's kernel search, 0 to 5. Default: TensorRT's own
        workspace_mib: Largest workspace of a kernel, MiB, 1 to 1,048,576. Default: the target's
        version_compatible: Build an engine that later releases of the same major version load too
        hardware_compatibility: GPUs besides this one that the engine runs on
        timing_cache: TensorRT's timing cache. Default: timing-TARGET.cache beside the build folder
        pin_timing_cache: Refuse to time kernels that the cache lacks, so that builds are reproducible
    """

    optimization_level: int | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    timing_cache: Path | None = None
    pin_timing_cache: bool = False

    def __post_init__(self) -> None:
        check_bounds("--workspace", self.workspace_mib, WORKSPACE_MIB)
        self._options(b"pinned" if self.pin_timing_cache else None)  # refuses values out of range

    def options(self, target: Target, out: Path) -> BuilderOptions:
        """The options with the timing cache's bytes.

        Raises InputError for an option that the target does not support, and for a timing cache that cannot be used.
        """
        if target.backend == "trt":
            return self._options(self.cache(target, out).read())
        supported = _SUPPORTED.get(target.backend, ())
        refused = [f.name for f in fields(self) if getattr(self, f.name) != f.default and f.name not in supported]
        if refused:
            raise UsageError(
                f"target {target.name} does not support this builder option",
                where="--target",
                found=", ".join(map(builder_flag, refused)),
                allowed=", ".join(map(builder_flag, supported)) or "none: only targets built with TensorRT support them",
            )
        return self._options(None)

    def cache(self, target: Target, out: Path) -> TimingCache:
        """The timing cache that builds for a target share."""
        return TimingCache(self.timing_cache or out.parent / f"timing-{target.name}.cache", self.pin_timing_cache)

    def as_json(self, target: Target, out: Path) -> dict[str, Any]:
        """Everything that decides the engine, as JSON; the GPUs of this machine only where the engine is built for them."""
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


def builder_flag(field: str) -> str:
    """The option of the command line that sets a field of `BuilderRequest`."""
    return "--" + field.removesuffix("_mib").replace("_", "-")


DEFAULT_BUILDER = BuilderRequest()
