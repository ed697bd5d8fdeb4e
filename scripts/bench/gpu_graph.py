#!/usr/bin/env python3
"""Compare the emulation of an engine's typed graph with a GPU's FP16 and INT8 arithmetic.

    python scripts/bench/gpu_graph.py BUILD [--images 10000]

BUILD is a folder of `ufovit build MODEL int8|fp16 --target rtx`, evaluated on the shipped test images: its typed graph, its
logits.npz (FP32 reference, and the typed graph with every rounding emulated on a CPU) and its manifest are read. The graph runs
operator by operator in torch on the first CUDA device, independently of the code of this toolkit:

    FP16 operators      torch's kernels on the device; products with FP32 accumulators, or with FP16 ones (second row)
    layers in INT8      the codes are multiplied on INT8 tensor cores (torch._int_mm) or, in convolutions, as whole numbers in
                        FP32, which is exact; INT32 sums are scaled in FP32 and rounded once

TensorRT fuses operators and rounds less often, which only the engine itself can show. This script shows whether the emulation,
with which an engine is evaluated without a GPU, agrees with a GPU's arithmetic. `--device cpu` uses torch's CPU kernels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch_operators
from torch_operators import conv

from calib.errors import ArtifactError, MissingError, UfovitError
from calib.metrics import sqnr_db
from edge.assets import TEST_IMAGES
from edge.images.idx import read_idx
from edge.images.preprocess import read_preprocess
from edge.tasks.classification.logits import answers, parse_logits
from engines.build_folder.file_names import ANSWERS, TYPED
from engines.build_folder.folder import BuildFolder

BATCH = 250


@dataclass(frozen=True)
class Codes:
    """Output of DequantizeLinear: INT8 codes and their scale, which an INT8 layer applies after its sum."""

    codes: torch.Tensor
    scale: torch.Tensor
    axis: int

    def scale_along(self, rank: int, axis: int) -> torch.Tensor:
        """The scale in FP32, reshaped to broadcast along an axis of a tensor with `rank` axes."""
        shape = [1] * rank
        if self.scale.numel() > 1:
            shape[axis] = -1
        return self.scale.float().reshape(shape)

    def floats(self) -> torch.Tensor:
        """The dequantized values in FP16."""
        return (self.codes.float() * self.scale_along(self.codes.ndim, self.axis)).half()


class Graph:
    """A typed graph on a device."""

    def __init__(self, model: onnx.ModelProto, device: str) -> None:
        self.nodes, self.device = list(model.graph.node), device
        self.constants = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()).to(device) for i in model.graph.initializer}
        (self.source,), (self.output,) = ([v.name for v in ends] for ends in (model.graph.input, model.graph.output))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) in FP32 of images (B, 3, S, S)."""
        values: dict[str, Any] = {self.source: images}
        for node in self.nodes:
            inputs = [values[name] if name in values else self.constants.get(name) for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type in ("MatMul", "Gemm", "Conv") and all(isinstance(x, Codes) for x in inputs[:2]):
                values[node.output[0]] = in_int8(node.op_type, inputs, attributes)
                continue
            if node.op_type != "DequantizeLinear":
                inputs = [x.floats() if isinstance(x, Codes) else x for x in inputs]
            values[node.output[0]] = OPERATORS[node.op_type](*inputs, **attributes)
        logits: torch.Tensor = values[self.output].float()
        return logits


def in_int8(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> torch.Tensor:
    """A layer of two INT8 operands: exact sums, scaled in FP32, bias added, rounded once to FP16."""
    x, w, *bias = inputs
    if operator == "Conv":
        total = conv(x.codes.float(), w.codes.float(), **attributes)
        scale = w.scale_along(total.ndim, 1)
    else:
        codes = w.codes.mT if attributes.get("transB") else w.codes
        total = whole_product(x.codes, codes)
        scale = w.scale_along(total.ndim, total.ndim - 1)
    output: torch.Tensor = total * (x.scale.float() * scale)
    if bias:
        output = output + bias[0].float().reshape([-1] + [1] * (output.ndim - 2))
    return output.half()


def whole_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b of INT8 tensors, exact, in FP32: on INT8 tensor cores if `b` is a matrix of supported size."""
    if b.ndim == 2 and a.is_cuda and a.shape[-1] % 8 == b.shape[1] % 8 == 0 and a.numel() // a.shape[-1] > 16:
        return torch._int_mm(a.reshape(-1, a.shape[-1]), b.contiguous()).float().reshape(*a.shape[:-1], b.shape[1])
    return a.float() @ b.float()  # sums below 2^24 of whole numbers are exact; TF32 is off


def quantize(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
    """ONNX QuantizeLinear to INT8 with one scale and no zero-point."""
    assert scale.numel() == 1
    assert zero is None or not zero.any()
    return torch.clamp(torch.round(x.float() / scale.float()), -128, 127).to(torch.int8)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None, axis: int = 1) -> Codes:
    """ONNX DequantizeLinear from INT8."""
    assert zero is None or not zero.any()
    return Codes(codes, scale, axis)


def l2(x: torch.Tensor, axes: torch.Tensor, **_: Any) -> torch.Tensor:
    """ONNX ReduceL2 in FP16 arithmetic: squares rounded, then added pairwise and rounded after each addition."""
    (axis,) = axes.tolist()
    squares = (x * x).movedim(axis, -1)
    while (length := squares.shape[-1]) > 1:
        half = length // 2
        odd = squares[..., 2 * half :]
        squares = torch.cat([squares[..., :half] + squares[..., half : 2 * half], odd], -1)
    return squares.sqrt().movedim(-1, axis)


OPERATORS: dict[str, Callable[..., Any]] = {
    **torch_operators.OPERATORS,
    "DequantizeLinear": dequantize,
    "QuantizeLinear": quantize,
    "ReduceL2": l2,
}


def main() -> None:
    """Run the graph and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--save", type=Path, help="write the logits to this .npz file")
    args = parser.parse_args()
    build = BuildFolder(args.build)
    stored = parse_logits(build.data(ANSWERS), args.build / ANSWERS)
    pixels = read_idx(TEST_IMAGES)
    if stored.labels is None or len(stored.reference) != len(pixels):
        raise ArtifactError(
            "the build was not evaluated on all shipped test images",
            where=args.build,
            found=f"{len(stored.reference)} images",
            next_command="ufovit build ufovit_t int8 --target rtx",
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise MissingError("torch finds no CUDA device", next_command="--device cpu uses torch's CPU kernels")
    preprocess = read_preprocess(build.manifest)
    count = min(args.images, len(pixels))
    images = np.concatenate([preprocess.batch(pixels[i : i + BATCH, ..., None]) for i in range(0, count, BATCH)])[:count]
    graph = Graph(onnx.load_model_from_string(build.data(TYPED)), args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {count} images of {args.build.name}")
    reference, emulated, labels = stored.reference[:count], stored.engine[:count], stored.labels[:count]
    rows = {"FP32 reference": reference, "emulated on a CPU": emulated}
    for name, fp16_sums in (("FP32 accumulators", False), ("FP16 accumulators", True)):
        if fp16_sums and args.device != "cuda":
            continue
        torch.backends.cuda.matmul.allow_fp16_accumulation = fp16_sums
        started = time.perf_counter()
        with torch.inference_mode():
            rows[f"{where}, {name}"] = np.concatenate(
                [graph(torch.from_numpy(images[i : i + BATCH]).to(args.device)).cpu().numpy() for i in range(0, count, BATCH)]
            )
        print(f"{name}: {time.perf_counter() - started:.1f} s")
    print("| graph | top-1 | SQNR to FP32, dB | agreement | SQNR to the emulation, dB | agreement |")
    print("|---|---|---|---|---|---|")
    for name, logits in rows.items():
        top1 = answers(logits)
        comparisons = [
            f"{sqnr_db(other, logits):.1f} | {100 * (top1 == answers(other)).mean():.2f} %" if other is not logits else "| "
            for other in (reference, emulated)
        ]
        print(f"| {name} | {100 * (top1 == labels).mean():.2f} % | {' | '.join(comparisons)} |")
    if args.save:
        columns: dict[str, Any] = {name.replace(" ", "_"): logits for name, logits in rows.items()}
        np.savez_compressed(args.save, **columns)


if __name__ == "__main__":
    try:
        main()
    except UfovitError as error:
        print(f"gpu_graph: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
