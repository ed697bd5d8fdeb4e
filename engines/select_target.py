"""Which target to build for: by name, or from what this machine has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calib.errors import InputError, MissingError
from engines import backends, hardware
from engines.targets import TARGETS, TRTEXEC, Target

AUTO = "auto"


@dataclass(frozen=True)
class Resolution:
    """The target to build for, and one sentence on why it is this one."""

    target: Target
    reason: str


def find_target(name: str) -> Target:
    """The target of a name that is not "auto". Raises InputError listing the known names, or why it is not supported."""
    if name not in TARGETS:
        raise InputError(f"unknown target {name!r}", allowed=", ".join((AUTO, *TARGETS)))
    target = TARGETS[name]
    if target.refusal:
        raise InputError(f"target {name} is not supported", found=target.refusal, next_command=TRTEXEC)
    return target


def judged_here(target: Target) -> bool:
    """Whether an engine for `target` is judged itself on this machine, and not the graph that it was built from.

    One for a CPU is anywhere, one that is built on the device there, others where there is a fitting GPU and a way to it.
    """
    if target.backend == "ort" or target.built_on == "device":
        return True
    return hardware.can_drive_gpu() and bool(set(hardware.gpu_compute_capabilities()) & set(target.compute_capabilities))


def resolve_target(name: str) -> Resolution:
    """The target of a name; "auto" chooses by what this machine has.

    Raises InputError listing the known names; MissingError for a target that is built on another device than this machine.
    """
    if name == AUTO:
        return _automatic()
    target = find_target(name)
    if target.jetson and target.jetson not in (module := hardware.jetson_module()):
        raise MissingError(
            f"an engine for {name} is built on the {target.jetson} itself",
            found=f"this machine is {module}" if module else "this machine is no Jetson",
            next_command="ufovit build MODEL PRECISION --target rtx; ufovit bundle build/MODEL-PRECISION-rtx; then, on the "
            "device, scripts/build_engine.sh --bundle FILE",
        )
    return Resolution(target, f"target {name} was asked for")


TORCH_TENSORRT = "torch-tensorrt"


def with_backend(target: Target, backend: str | None) -> Target:
    """The target built by another backend than its own. Raises InputError for one that does not build for it."""
    if backend is None:
        return target
    if backend != TORCH_TENSORRT or target.backend not in ("trt", "trt_rtx"):
        allowed = f"{TORCH_TENSORRT}, for a target that is built with TensorRT or TensorRT-RTX"
        raise InputError("no such backend for this target", found=f"{backend} for {target.name}", allowed=allowed)
    return replace(target, backend="torch_trt")


def jetson_target(module: str) -> Target | None:
    """The target of a Jetson module, as the device tree names it; None for one that is not known."""
    return next((target for target in TARGETS.values() if target.jetson and target.jetson in module), None)


def _automatic() -> Resolution:
    module = hardware.jetson_module()
    if module:
        target = jetson_target(module)
        if target is None:
            allowed = ", ".join(t.jetson for t in TARGETS.values() if t.jetson and not t.refusal)
            raise InputError("no target is known for this Jetson", found=module, allowed=allowed)
        return Resolution(find_target(target.name), f"this machine is a {module}")
    gpus, cpu, rtx = hardware.gpu_compute_capabilities(), TARGETS["cpu"], TARGETS["rtx"]
    if gpus and backends.probe_backend("trt").works:
        return Resolution(TARGETS["desktop"], f"this machine's GPU has compute capability {gpus[0]}, and TensorRT works")
    if not backends.probe_backend("trt_rtx").works:
        return Resolution(cpu, "TensorRT-RTX is not usable here, so the engine is built for the CPU")
    if not gpus:
        return Resolution(rtx, "this machine has no NVIDIA GPU, so the engine is built for RTX GPUs and checked on the CPU")
    if set(gpus) & set(rtx.compute_capabilities):
        return Resolution(rtx, f"this machine's GPU has compute capability {gpus[0]}, which TensorRT-RTX serves")
    return Resolution(cpu, f"no backend serves this machine's GPU (compute capability {gpus[0]}), so the engine is for the CPU")
