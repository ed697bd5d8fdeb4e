"""Targets: what an engine is built for, and the documented facts that decide how.

Sources:
    compute capability   https://developer.nvidia.com/cuda-gpus and /cuda/gpus/jetson: Orin 8.7, Thor 11.0, Xavier 7.2
    memory               the modules' data sheets; of several sizes the smallest counts, because an engine must fit all of them
    TensorRT             JetPack release notes: 5.1 has 8.5, 6.0 has 8.6, 6.1 and 6.2 have 10.3, 7.0 and 7.1 have 10.13 (Thor),
                         7.2 has 10.16 (Orin, Thor)
    precisions           TensorRT support matrix: INT8, FP16 and BF16 tensor cores from 8.0 on, FP8 from 8.9 on
    TensorRT-RTX         its `ComputeCapability` enumeration, 7.5 to 12.1, without 8.7, 9.0 and 11.0

A Jetson shares its memory between CPU and GPU, so a builder there gets a quarter of it as workspace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from calib.errors import InputError, MissingError
from engines import probe

BackendName = Literal["ort", "trt", "trt_rtx", "torch_trt"]
FloatType = Literal["fp32", "fp16"]

AUTO = "auto"
_GIB = 1 << 30
_WORKSPACE_SHARE = 4
_AMPERE = ("int8", "fp16", "bf16")


@dataclass(frozen=True)
class Target:
    """A device family and the backend that builds for it.

    Attributes:
        name: what a user types.
        backend: key of `engines.build.BACKENDS`.
        float_type: type of everything around the INT8 layers of an INT8 build.
        compute_capabilities: GPU generations that the engine runs on, "major.minor"; empty for a CPU, and for the GPU of this
            machine, whichever it is.
        engine_suffix: ending of the engine's file name.
        int8_floor: share of the MACs that an INT8 build must run in INT8 by default, below which it fails.
        description: one line for a person.
        built_on: "any" machine, or only the "device" itself.
        precisions: what its tensor cores compute in, besides FP32.
        memory_bytes: of the smallest module of its kind, shared with the CPU on a Jetson; None where the machine tells.
        releases: JetPack -> the TensorRT that comes with it, of those that this toolkit supports.
        jetson: how the device tree names the module, "" for anything but a Jetson.
        refusal: why nothing can be built for it, "" if it can.
    """

    name: str
    backend: BackendName
    float_type: FloatType
    compute_capabilities: tuple[str, ...]
    engine_suffix: str
    int8_floor: float
    description: str
    built_on: Literal["any", "device"] = "any"
    precisions: tuple[str, ...] = ()
    memory_bytes: int | None = None
    releases: tuple[tuple[str, str], ...] = ()
    jetson: str = ""
    refusal: str = ""

    @property
    def workspace_bytes(self) -> int | None:
        """Most memory that a kernel may use for itself; None for the library's own limit."""
        return None if self.memory_bytes is None else self.memory_bytes // _WORKSPACE_SHARE


def _jetson(name: str, module: str, capability: str, gib: int, releases: tuple[tuple[str, str], ...]) -> Target:
    precisions = _AMPERE if capability == "8.7" else (*_AMPERE, "fp8")
    return Target(
        name=name,
        backend="trt",
        float_type="fp16",
        compute_capabilities=(capability,),
        engine_suffix=".engine",
        int8_floor=0.95,
        description=f"Jetson {module}, through its JetPack's TensorRT; built on the device, from a bundle",
        built_on="device",
        precisions=precisions,
        memory_bytes=gib * _GIB,
        releases=releases,
        jetson=module,
    )


_ORIN = (("6.1", "10.3"), ("6.2", "10.3"), ("7.2", "10.16"))
_THOR = (("7.0", "10.13"), ("7.1", "10.13"), ("7.2", "10.16"))

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cpu", "ort", "fp32", (), ".onnx", 0.85, "any CPU, through ONNX Runtime", precisions=("int8",)),
        Target(
            "rtx",
            "trt_rtx",
            "fp16",
            ("8.0", "8.6", "8.9", "12.0", "12.1"),
            ".engine",
            0.95,
            "desktop and data-centre GPUs of Ampere, Ada and Blackwell, through TensorRT-RTX; builds without a GPU",
            precisions=_AMPERE,
        ),
        Target(
            "desktop",
            "trt",
            "fp16",
            (),
            ".engine",
            0.95,
            "this machine's NVIDIA GPU, through TensorRT",
            built_on="device",
            precisions=_AMPERE,
        ),
        _jetson("orin-nano", "Orin Nano", "8.7", 4, _ORIN),
        _jetson("orin-nx", "Orin NX", "8.7", 8, _ORIN),
        _jetson("agx-orin", "AGX Orin", "8.7", 32, _ORIN),
        _jetson("thor", "Thor", "11.0", 64, _THOR),
        Target(
            "xavier-nx",
            "trt",
            "fp16",
            ("7.2",),
            ".engine",
            0.95,
            "Jetson Xavier NX: not supported",
            built_on="device",
            precisions=("int8", "fp16"),
            memory_bytes=8 * _GIB,
            jetson="Xavier NX",
            refusal="its last JetPack is 5.1 with TensorRT 8.5, which has no strongly typed networks",
        ),
    )
}


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
        raise InputError(f"target {name} is not supported", found=target.refusal, next_command=probe.TRTEXEC)
    return target


def judged_here(target: Target) -> bool:
    """Whether an engine for `target` is judged itself on this machine, and not the graph that it was built from.

    One for a CPU is anywhere, one that is built on the device there, others where there is a fitting GPU and a way to it.
    """
    if target.backend == "ort" or target.built_on == "device":
        return True
    return probe.can_drive_gpu() and bool(set(probe.gpu_compute_capabilities()) & set(target.compute_capabilities))


def resolve_target(name: str) -> Resolution:
    """The target of a name; "auto" chooses by what this machine has.

    Raises InputError listing the known names; MissingError for a target that is built on another device than this machine.
    """
    if name == AUTO:
        return _automatic()
    target = find_target(name)
    if target.jetson and target.jetson not in (module := probe.jetson_module()):
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
    module = probe.jetson_module()
    if module:
        target = jetson_target(module)
        if target is None:
            allowed = ", ".join(t.jetson for t in TARGETS.values() if t.jetson and not t.refusal)
            raise InputError("no target is known for this Jetson", found=module, allowed=allowed)
        return Resolution(find_target(target.name), f"this machine is a {module}")
    gpus, cpu, rtx = probe.gpu_compute_capabilities(), TARGETS["cpu"], TARGETS["rtx"]
    if gpus and probe.probe_backend("trt").works:
        return Resolution(TARGETS["desktop"], f"this machine's GPU has compute capability {gpus[0]}, and TensorRT works")
    if not probe.probe_backend("trt_rtx").works:
        return Resolution(cpu, "TensorRT-RTX is not usable here, so the engine is built for the CPU")
    if not gpus:
        return Resolution(rtx, "this machine has no NVIDIA GPU, so the engine is built for RTX GPUs and checked on the CPU")
    if set(gpus) & set(rtx.compute_capabilities):
        return Resolution(rtx, f"this machine's GPU has compute capability {gpus[0]}, which TensorRT-RTX serves")
    return Resolution(cpu, f"no backend serves this machine's GPU (compute capability {gpus[0]}), so the engine is for the CPU")
