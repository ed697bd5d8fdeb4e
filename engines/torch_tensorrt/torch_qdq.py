"""QuantizeLinear and DequantizeLinear as torch operators, so that a Q/DQ graph passes through `torch.export` as it is.

    ufovit::quantize(x, s)   = clamp(rint(x / s), -128, 127)    float -> int8; divided in FP32, ties to even
    ufovit::dequantize(q, s) = q * s                            int8 -> type of s; multiplied in FP32

`s` is a scalar, or a vector along `axis`. Zero-points are 0, as TensorRT wants them. These are ONNX's definitions. No
operators of others will do: torch-tensorrt converts one fused operator of ModelOpt, whose scales must run along axis 0 and
which takes no weight stored as INT8; torch's own `quantized_decomposed` multiplies by 1 / s, which gives other codes near ties.

Needs torch alone: it is loaded here and, by path, in torch-tensorrt's environment.
"""

from __future__ import annotations

import torch

NAMESPACE = "ufovit"


def quantize(x: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """INT8 codes of a float tensor of any shape; `scale` () or (x.shape[axis],)."""
    codes = torch.round(x.float() / _along(scale, x.dim(), axis).float())
    return codes.clamp(-128, 127).to(torch.int8)


def dequantize(q: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """What INT8 codes of any shape stand for, in the type of `scale`, () or (q.shape[axis],)."""
    return (q.float() * _along(scale, q.dim(), axis).float()).to(scale.dtype)


def register() -> None:
    """Make `torch.ops.ufovit.quantize` and `.dequantize` known; once per process."""
    for function, fake, schema in (
        (quantize, _quantized_like, "(Tensor x, Tensor scale, int axis) -> Tensor"),
        (dequantize, _dequantized_like, "(Tensor q, Tensor scale, int axis) -> Tensor"),
    ):
        name = f"{NAMESPACE}::{function.__name__}"
        torch.library.define(name, schema)
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        torch.library.register_fake(name, fake)


def _quantized_like(x: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:  # noqa: ARG001  # the operator's signature
    return torch.empty_like(x, dtype=torch.int8)


def _dequantized_like(q: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:  # noqa: ARG001  # as above
    return torch.empty_like(q, dtype=scale.dtype)


def _along(scale: torch.Tensor, dims: int, axis: int) -> torch.Tensor:
    return scale if scale.dim() == 0 else scale.reshape([-1 if i == axis % dims else 1 for i in range(dims)])
