"""Select the target to build for: by name, or from the hardware of this machine."""

from dataclasses import dataclass, replace
from importlib.util import find_spec

from calib.errors import MissingError, UsageError
from engines import backends, hardware
from engines.targets import CPU_BACKENDS, TARGETS, TRTEXEC, BackendName, Target

AUTO = "auto"


@dataclass(frozen=True)
class Resolution:
    """The selected target and the reason, one sentence."""

    target: Target
    reason: str


def find_target(name: str) -> Target:
    """Look up a target other than "auto". Raises UsageError with the known names, or why it is not supported."""
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}", where="--target", allowed=", ".join((AUTO, *TARGETS)))
    target = TARGETS[name]
    if target.refusal:
        raise UsageError(f"target {name} is not supported", where="--target", found=target.refusal, next_command=TRTEXEC)
    return target


def judged_here(target: Target) -> bool:
    """Whether an engine for `target` can be evaluated on this machine, rather than the graph that it is built from.

    True for a CPU target, for a target built on its device, and with a matching GPU and pycuda or cuda-python installed.
    """
    if target.backend in CPU_BACKENDS or target.built_on == "device":
        return True
    return hardware.can_drive_gpu() and bool(set(hardware.gpu_compute_capabilities()) & set(target.compute_capabilities))


def resolve_target(name: str) -> Resolution:
    """Resolve a target name; "auto" selects by the hardware of this machine.

    Raises UsageError listing the known names; MissingError for a target that must be built on another device.
    """
    if name == AUTO:
        return _select_automatically()
    target = find_target(name)
    if target.jetson and target.jetson not in (module := hardware.jetson_module()):
        raise MissingError(
            f"an engine for {name} must be built on the {target.jetson} itself",
            where="--target",
            found=f"this machine is {module}" if module else "this machine is not a Jetson",
            next_command="ufovit build MODEL PRECISION --target rtx; ufovit bundle build/MODEL-PRECISION-rtx; then, on the "
            "device, scripts/build_engine.sh --bundle FILE",
        )
    return Resolution(target, f"target {name} was requested")


TORCH_TENSORRT = "torch-tensorrt"


def with_backend(target: Target, backend: str | None) -> Target:
    """The target with another backend. Raises UsageError if that backend does not support it.

    None selects OpenVINO for a CPU where it is installed, which is faster than ONNX Runtime (docs/cpu-latency.md), else the
    target's own.
    """
    on_cpu = target.backend in CPU_BACKENDS
    if backend is None:
        return replace(target, backend="openvino") if on_cpu and find_spec("openvino") is not None else target
    names: dict[str, BackendName] = {"openvino": "openvino", "ort": "ort"} if on_cpu else {TORCH_TENSORRT: "torch_trt"}
    if backend not in names:
        allowed = ", ".join(names)
        found = f"{backend} for {target.name}"
        raise UsageError("the backend does not support this target", where="--backend", found=found, allowed=allowed)
    return replace(target, backend=names[backend])


def _select_automatically() -> Resolution:
    module = hardware.jetson_module()
    if module:
        target = next((t for t in TARGETS.values() if t.jetson and t.jetson in module), None)
        if target is None:
            allowed = ", ".join(t.jetson for t in TARGETS.values() if t.jetson and not t.refusal)
            raise UsageError("there is no target for this Jetson module", where="--target auto", found=module, allowed=allowed)
        return Resolution(find_target(target.name), f"this machine is a {module}")
    gpus, cpu, rtx = hardware.gpu_compute_capabilities(), TARGETS["cpu"], TARGETS["rtx"]
    if gpus and backends.probe_backend("trt").works:
        return Resolution(TARGETS["desktop"], f"this machine's GPU has compute capability {gpus[0]}, and TensorRT works")
    if not backends.probe_backend("trt_rtx").works:
        return Resolution(cpu, "TensorRT-RTX is not usable here, so the engine is built for the CPU")
    if not gpus:
        return Resolution(rtx, "this machine has no NVIDIA GPU, so the engine is built for RTX GPUs and checked on the CPU")
    if set(gpus) & set(rtx.compute_capabilities):
        return Resolution(rtx, f"this machine's GPU has compute capability {gpus[0]}, which TensorRT-RTX supports")
    return Resolution(cpu, f"no backend supports this GPU (compute capability {gpus[0]}), so the engine is for the CPU")
