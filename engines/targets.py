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

from dataclasses import dataclass
from typing import Literal

BackendName = Literal["ort", "trt", "trt_rtx", "torch_trt"]
FloatType = Literal["fp32", "fp16"]

_GIB = 1 << 30
_WORKSPACE_SHARE = 4
_AMPERE = ("int8", "fp16", "bf16")


@dataclass(frozen=True)
class Target:
    """A device family and the backend that builds for it.

    Attributes:
        name: what a user types.
        backend: key of `engines.backends.BACKENDS`.
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


TRTEXEC = (
    "JetPack 6.1 or newer where the module takes it; else try trtexec --onnx=model.int8.onnx --int8 --fp16 "
    "--saveEngine=engine.plan with the Q/DQ graph of `ufovit build`, if its parser knows the graph's opset"
)
"""The way for TensorRT 8.5 and 8.6, which are not supported: their networks are typed by flags, not by the graph."""
