"""QuantizeLinear and DequantizeLinear as torch operators, which `torch.export` keeps as they are.

    ufovit::quantize(x, s)   = clamp(rint(x / s), -128, 127)    float -> int8; divided in FP32, ties to even
    ufovit::dequantize(q, s) = q * s                            int8 -> type of s; multiplied in FP32

`s` is a scalar, or a vector along `axis`. Zero-points are 0, as TensorRT requires. The definitions are ONNX's. Existing
operators do not fit: torch-tensorrt converts one fused operator of ModelOpt, whose scales must lie along axis 0 and which does
not take INT8 weights; torch's `quantized_decomposed` multiplies by 1 / s, which gives other codes near ties.

Imports torch only: it is also loaded, by path, in torch-tensorrt's environment.
"""

import torch

NAMESPACE = "ufovit"


def quantize(x: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """Quantize a float tensor of any shape to INT8 codes; `scale` () or (x.shape[axis],)."""
    codes = torch.round(x.float() / _broadcast(scale, x.dim(), axis).float())
    return codes.clamp(-128, 127).to(torch.int8)


def dequantize(q: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """Dequantize INT8 codes of any shape to the type of `scale`, () or (q.shape[axis],)."""
    return (q.float() * _broadcast(scale, q.dim(), axis).float()).to(scale.dtype)


def register() -> None:
    """Register `torch.ops.ufovit.quantize` and `.dequantize`; call once per process."""
    for function, fake, schema in (
        (quantize, lambda x, *_: torch.empty_like(x, dtype=torch.int8), "(Tensor x, Tensor scale, int axis) -> Tensor"),
        (
            dequantize,
            lambda q, scale, _: torch.empty_like(q, dtype=scale.dtype),
            "(Tensor q, Tensor scale, int axis) -> Tensor",
        ),
    ):
        name = f"{NAMESPACE}::{function.__name__}"
        torch.library.define(name, schema)
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        torch.library.register_fake(name, fake)


def _broadcast(scale: torch.Tensor, dims: int, axis: int) -> torch.Tensor:
    return scale if scale.dim() == 0 else scale.reshape([-1 if i == axis % dims else 1 for i in range(dims)])
