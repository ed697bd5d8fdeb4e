"""The specification of a build: graph, target, precision, batch sizes and builder options."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from calib.errors import UsageError
from engines.targets import Target

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

LARGEST_BATCH = 1024
_HIGHEST_LEVEL = 5
_MOST_DIGITS = 9


@dataclass(frozen=True)
class BatchRange:
    """Batch sizes of an engine: `min` to `max`, tuned for `opt`. Raises UsageError unless 1 <= min <= opt <= max."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= LARGEST_BATCH:
            raise UsageError(
                "batch sizes are not in increasing order or out of range",
                where="--batch",
                found=f"min {self.min}, opt {self.opt}, max {self.max}",
                allowed=f"1 <= min <= opt <= max <= {LARGEST_BATCH}",
            )


def parse_batch(text: str) -> BatchRange:
    """Parse "MIN,OPT,MAX", or one number for a fixed batch. Raises UsageError."""
    numbers = [size for size in map(batch_size, text.split(",")) if size is not None]
    if len(numbers) not in (1, 3) or len(numbers) != text.count(",") + 1:
        allowed = f"MIN,OPT,MAX such as 1,8,32, or one number, 1 to {LARGEST_BATCH:,} each"
        raise UsageError("invalid batch sizes", where="--batch", found=repr(text), allowed=allowed)
    return BatchRange(*(numbers if len(numbers) == 3 else numbers * 3))


def batch_size(text: str) -> int | None:
    """A number from its digits, nine at most; None for anything else."""
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS else None


def check_floor(int8_floor: float | None) -> None:
    """Raise UsageError unless the INT8 floor, a share of MACs, is in [0, 1] or None."""
    if int8_floor is not None and not 0 <= int8_floor <= 1:
        what = "the INT8 floor must be a fraction of the MACs"
        raise UsageError(what, where="--int8-floor", found=int8_floor, allowed="a number from 0 to 1")


HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]


@dataclass(frozen=True)
class BuilderOptions:
    """Options of a TensorRT build. Raises UsageError for a value outside its range.

    Attributes:
        optimization_level: effort of the kernel search, 0 to 5; None for TensorRT's default, 3.
        workspace_bytes: limit on the scratch memory of a kernel; None for the limit of the target.
        version_compatible: the engine also loads in later releases of the same major version.
        hardware_compatibility: "ampere_plus" runs on every GPU of compute capability 8.0 or higher, "same_compute_capability"
            on any GPU of the same compute capability, "none" only on the GPU model it was built on.
        timing_cache: serialized timing cache of earlier builds, None for no cache.
        pin_timing_cache: fail when a kernel is not in the timing cache, so that builds are reproducible.
    """

    optimization_level: int | None = None
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    timing_cache: bytes | None = None
    pin_timing_cache: bool = False

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= _HIGHEST_LEVEL:
            what, allowed = "unknown optimization level", f"0 to {_HIGHEST_LEVEL}"
            raise UsageError(what, where="--optimization-level", found=self.optimization_level, allowed=allowed)
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            what = "workspace must be a positive number of bytes"
            raise UsageError(what, where="--workspace", found=self.workspace_bytes, allowed="1 or more")
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise UsageError(
                "unknown hardware compatibility",
                where="--hardware-compatibility",
                found=repr(self.hardware_compatibility),
                allowed=", ".join(get_args(HardwareCompatibility)),
            )
        if self.pin_timing_cache and not self.timing_cache:
            raise UsageError(
                "no timing cache to pin",
                where="--pin-timing-cache",
                next_command="build once without --pin-timing-cache, then pin the cache of that build",
            )


@dataclass(frozen=True)
class BuildSpec:
    """One build.

    Attributes:
        onnx: the input graph: strongly typed for "fp16" and for INT8 on a GPU, with Q/DQ for "int8".
        precision: the requested precision, with which the receipt is compared.
        batch: batch sizes of the engine; ignored if the graph has a fixed batch.
        int8_floor: share of the MACs in [0, 1] that must run in INT8, None for the default of the target; "int8" only.
        options: TensorRT builder options; the other backends accept only the defaults.
    """

    onnx: Path
    target: Target
    precision: Precision
    batch: BatchRange = BatchRange(1, 1, 32)
    int8_floor: float | None = None
    options: BuilderOptions = BuilderOptions()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", where="PRECISION", allowed=", ".join(PRECISIONS))
        check_floor(self.int8_floor)

    def refuse_options(self, library: str, *supported: str) -> None:
        """Raise UsageError for a builder option that differs from its default and that `library` does not support."""
        changed = [f.name for f in fields(BuilderOptions) if getattr(self.options, f.name) != f.default]
        if unsupported := [name for name in changed if name not in supported]:
            allowed = ", ".join([*supported, "a target that is built with TensorRT"])
            raise UsageError(f"{library} does not support this builder option", found=", ".join(unsupported), allowed=allowed)

    def refuse_fp16(self, library: str) -> None:
        """Raise UsageError for "fp16", which `library` computes in FP32 on a CPU."""
        if self.precision == "fp16":
            raise UsageError(
                f"{library} computes FP16 graphs in FP32 on a CPU",
                where="PRECISION",
                found=f"precision fp16 for target {self.target.name}",
                allowed="fp32, int8, or a GPU target",
            )

    @property
    def floor(self) -> float:
        """The share of MACs that must run in INT8: 0 unless the precision is "int8"."""
        if self.precision != "int8":
            return 0.0
        return self.target.int8_floor if self.int8_floor is None else self.int8_floor
