"""Targets: device families, with the documented facts that determine how an engine is built for them.

Sources:
    compute capability   https://developer.nvidia.com/cuda-gpus and /cuda/gpus/jetson: Orin 8.7, Thor 11.0, Xavier 7.2
    memory               the modules' data sheets; the smallest of several sizes, because an engine must fit all of them
    TensorRT             JetPack release notes: 5.1 has 8.5, 6.0 has 8.6, 6.1 and 6.2 have 10.3, 7.0 and 7.1 have 10.13 (Thor),
                         7.2 has 10.16 (Orin, Thor)
    precisions           TensorRT support matrix: INT8, FP16 and BF16 tensor cores from 8.0 on, FP8 from 8.9 on
    TensorRT-RTX         its `ComputeCapability` enumeration, 7.5 to 12.1, without 8.7, 9.0 and 11.0

A Jetson shares its memory between CPU and GPU, so the builder workspace is a quarter of it.
"""

from dataclasses import dataclass, replace
from typing import Literal

BackendName = Literal["ort", "openvino", "trt", "trt_rtx", "torch_trt"]
CPU_BACKENDS = frozenset(("ort", "openvino"))
FloatType = Literal["fp32", "fp16"]

_GIB = 1 << 30
_WORKSPACE_SHARE = 4


@dataclass(frozen=True)
class Target:
    """A device family and the backend that builds for it.

    Attributes:
        name: value of --target.
        backend: key of `engines.backends.BACKENDS`.
        compute_capabilities: compute capabilities that the engine runs on, "major.minor"; empty for a CPU and for "desktop",
            whose engine is for the GPU of the build machine.
        float_type: type of the float layers of an INT8 build.
        int8_floor: default minimum share of the MACs in INT8; an INT8 build below it fails.
        built_on: "any" machine, or only the "device" itself.
        workspace_bytes: limit on the scratch memory of a kernel; None for the library's default.
        jetson: name of the module in the device tree, "" unless a Jetson.
        refusal: why the target is not supported, "" if it is.
    """

    name: str
    backend: BackendName
    compute_capabilities: tuple[str, ...] = ()
    float_type: FloatType = "fp16"
    engine_suffix: str = ".engine"
    int8_floor: float = 0.95
    built_on: Literal["any", "device"] = "any"
    workspace_bytes: int | None = None
    jetson: str = ""
    refusal: str = ""


def _jetson(name: str, module: str, capability: str, memory_gib: int) -> Target:
    workspace = memory_gib * _GIB // _WORKSPACE_SHARE
    return Target(name, "trt", (capability,), built_on="device", workspace_bytes=workspace, jetson=module)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cpu", "ort", float_type="fp32", engine_suffix=".onnx", int8_floor=0.85),
        Target("rtx", "trt_rtx", ("8.0", "8.6", "8.9", "12.0", "12.1")),  # Ampere, Ada and Blackwell; builds without a GPU
        Target("desktop", "trt", built_on="device"),
        _jetson("orin-nano", "Orin Nano", "8.7", 4),
        _jetson("orin-nx", "Orin NX", "8.7", 8),
        _jetson("agx-orin", "AGX Orin", "8.7", 32),
        _jetson("thor", "Thor", "11.0", 64),
        replace(
            _jetson("xavier-nx", "Xavier NX", "7.2", 8),
            refusal="its last JetPack, 5.1, has TensorRT 8.5, which does not support strongly typed networks",
        ),
    )
}


TRTEXEC = (
    "JetPack 6.1 or newer if the module supports it; otherwise try trtexec --onnx=model.int8.onnx --int8 --fp16 "
    "--saveEngine=engine.plan with the Q/DQ graph of `ufovit build`, if its parser supports the graph's opset"
)
"""Next step for TensorRT 8.5 and 8.6, which are not supported: they set precision by flags, not in the graph."""
