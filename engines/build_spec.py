"""What to build: BuildSpec, and the batch sizes an engine accepts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from calib.errors import InputError
from engines.targets import Target

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_LARGEST_BATCH = 1024
_HIGHEST_LEVEL = 5


@dataclass(frozen=True)
class BatchRange:
    """Batch sizes of an engine: any from `min` to `max`, tuned for `opt`. Raises InputError unless 1 <= min <= opt <= max."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= _LARGEST_BATCH:
            raise InputError(
                "batch sizes do not fit together",
                found=f"min {self.min}, opt {self.opt}, max {self.max}",
                allowed=f"1 <= min <= opt <= max <= {_LARGEST_BATCH}",
            )


def parse_batch(text: str) -> BatchRange:
    """BatchRange from "MIN,OPT,MAX", or from one number for a fixed batch. Raises InputError."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(p.strip().isascii() and p.strip().isdigit() for p in parts):
        raise InputError("batch is not understood", found=repr(text), allowed="MIN,OPT,MAX such as 1,8,32, or one number")
    numbers = [int(p) for p in parts]
    return BatchRange(*(numbers if len(numbers) == 3 else numbers * 3))


def check_floor(int8_floor: float | None) -> None:
    """Raise InputError unless the smallest share of MACs in INT8 is a fraction or None."""
    if int8_floor is not None and not 0 <= int8_floor <= 1:
        raise InputError("INT8 floor is no fraction", found=int8_floor, allowed="a number from 0 to 1")


HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]


@dataclass(frozen=True)
class BuilderOptions:
    """What a TensorRT build may be told beyond its graph. Raises InputError for a value outside its range.

    Attributes:
        optimization_level: how long the builder searches for kernels, 0 to 5; None for TensorRT's default, 3.
        workspace_bytes: most device memory that a kernel may use for itself; None for the target's own limit.
        version_compatible: the engine loads in later releases of the same major version too.
        hardware_compatibility: "ampere_plus" runs on every GPU from compute capability 8.0 on, "same_compute_capability" on
            any GPU of this one's, "none" only on this kind of GPU.
        timing_cache: what earlier builds measured, None for no cache.
        pin_timing_cache: refuse to build when something would have to be measured anew, so that builds repeat.
    """

    optimization_level: int | None = None
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    timing_cache: bytes | None = None
    pin_timing_cache: bool = False

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= _HIGHEST_LEVEL:
            raise InputError("no such optimization level", found=self.optimization_level, allowed=f"0 to {_HIGHEST_LEVEL}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InputError("workspace must be a positive number of bytes", found=self.workspace_bytes)
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise InputError(
                "unknown hardware compatibility",
                found=repr(self.hardware_compatibility),
                allowed=", ".join(get_args(HardwareCompatibility)),
            )
        if self.pin_timing_cache and not self.timing_cache:
            raise InputError(
                "there is no timing cache to pin", next_command="build once without --pin-timing-cache, then pin what it left"
            )


@dataclass(frozen=True)
class BuildSpec:
    """One build.

    Attributes:
        onnx: the graph as the backend takes it: typed for "fp16" and for INT8 on a GPU, with Q/DQ for "int8".
        target: what it is built for.
        precision: what the receipt is held against.
        batch: batch sizes of the engine; ignored where the graph's batch is fixed.
        int8_floor: share of the MACs in [0, 1] that must run in INT8, None for the target's own; applies to "int8" only.
        options: what only TensorRT knows; the other backends refuse anything but the defaults.
    """

    onnx: Path
    target: Target
    precision: Precision
    batch: BatchRange = BatchRange(1, 1, 32)
    int8_floor: float | None = None
    options: BuilderOptions = BuilderOptions()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}", allowed=", ".join(PRECISIONS))
        check_floor(self.int8_floor)

    def refuse_options(self, library: str, *known: str) -> None:
        """Raise InputError when a builder option other than the known ones was given to a library."""
        given = [f.name for f in fields(BuilderOptions) if getattr(self.options, f.name) != f.default]
        if odd := [name for name in given if name not in known]:
            allowed = ", ".join([*known, "a target that is built with TensorRT"])
            raise InputError(f"{library} has no such builder option", found=", ".join(odd), allowed=allowed)

    @property
    def floor(self) -> float:
        """The share of MACs in INT8 that this build must reach: 0 unless the precision is "int8"."""
        if self.precision != "int8":
            return 0.0
        return self.target.int8_floor if self.int8_floor is None else self.int8_floor
