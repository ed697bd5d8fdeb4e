"""Targets: what an engine is built for. Only what can be built today is listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calib.errors import InputError
from engines import probe

BackendName = Literal["ort", "trt_rtx"]
FloatType = Literal["fp32", "fp16"]

AUTO = "auto"


@dataclass(frozen=True)
class Target:
    """A device family and the backend that builds for it.

    Attributes:
        name: what a user types.
        backend: key of `engines.build.BACKENDS`.
        float_type: type of everything around the INT8 layers of an INT8 build.
        compute_capabilities: GPU generations that the engine runs on, "major.minor"; empty for a CPU.
        engine_suffix: ending of the engine's file name.
        int8_floor: share of the MACs that an INT8 build must run in INT8 by default, below which it fails.
        description: one line for a person.
    """

    name: str
    backend: BackendName
    float_type: FloatType
    compute_capabilities: tuple[str, ...]
    engine_suffix: str
    int8_floor: float
    description: str


TARGETS: dict[str, Target] = {
    "cpu": Target("cpu", "ort", "fp32", (), ".onnx", 0.85, "any CPU, through ONNX Runtime"),
    "rtx": Target(
        "rtx",
        "trt_rtx",
        "fp16",
        ("8.0", "8.6", "8.9", "12.0"),
        ".engine",
        0.95,
        "desktop and data-centre GPUs of Ampere, Ada and Blackwell, through TensorRT-RTX; builds without a GPU",
    ),
}


@dataclass(frozen=True)
class Resolution:
    """The target to build for, and one sentence on why it is this one."""

    target: Target
    reason: str


def resolve_target(name: str) -> Resolution:
    """The target of a name; "auto" chooses by what this machine has. Raises InputError listing the known names."""
    if name == AUTO:
        return _automatic(probe.gpu_compute_capabilities(), rtx_works=probe.probe_backend("trt_rtx").works)
    if name not in TARGETS:
        raise InputError(f"unknown target {name!r}", allowed=", ".join((AUTO, *TARGETS)))
    return Resolution(TARGETS[name], f"target {name} was asked for")


def _automatic(gpus: tuple[str, ...], *, rtx_works: bool) -> Resolution:
    cpu, rtx = TARGETS["cpu"], TARGETS["rtx"]
    if not rtx_works:
        return Resolution(cpu, "TensorRT-RTX is not usable here, so the engine is built for the CPU")
    if not gpus:
        return Resolution(rtx, "this machine has no NVIDIA GPU, so the engine is built for RTX GPUs and checked on the CPU")
    if set(gpus) & set(rtx.compute_capabilities):
        return Resolution(rtx, f"this machine's GPU has compute capability {gpus[0]}, which TensorRT-RTX serves")
    return Resolution(cpu, f"no backend serves this machine's GPU (compute capability {gpus[0]}), so the engine is for the CPU")
