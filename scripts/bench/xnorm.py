#!/usr/bin/env python3
"""Measure the XNorm certificate: planted faults, FP16 accuracy at several scales, time and errors by model size.

    scripts/install.sh build
    python scripts/bench/xnorm.py faults            every planted fault: FP16 without and with the repair
    python scripts/bench/xnorm.py scales            FP16 top-1 at scales of W_K, all test images
    python scripts/bench/xnorm.py sizes             certificates of every model size at 224, 448 and 896 px

FP16 is emulated: every tensor is rounded as on FP16 hardware (`engines.fp16_emulation`). "Without repair" keeps every sum in
FP16; "with repair" is the graph of a build. The reference is the same graph in FP32. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.errors import UfovitError
from calib.ort_session import TappedGraph
from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT, TEST_IMAGES
from edge.images.labelled_images import open_images
from edge.model.checkpoint import load_checkpoint, random_network
from edge.model.export import simplify, to_onnx
from edge.model.export_foldings import fold
from edge.model.metadata import read_info
from edge.model.sizes import SIZES, config
from edge.model.ufo_vit import UfoVit
from edge.stability.certify import CertifyConfig, certify_graph, image_budget
from edge.stability.finders.xnorm import find_sites
from edge.stability.fp16_network import Agreement, compare_logits, fp16_graph

BATCH = 50
CHECKED = 64
TRAINED_AT = read_info(SHIPPED_CHECKPOINT).config.height  # pixels
Edit = Callable[[onnx.ModelProto], None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the XNorm certificate.")
    parser.add_argument("table", choices=["faults", "scales", "sizes"])
    parser.add_argument("--images", type=int, default=None, help="test images; default: 1000 for faults, all for scales")
    parser.add_argument("--models", default=",".join(SIZES), help="for sizes")
    parser.add_argument("--image-sizes", default="224,448,896", help="for sizes, pixels")
    args = parser.parse_args()
    if args.table == "faults":
        faults(args.images or 1000)
    elif args.table == "scales":
        scales(args.images or 10_000)
    else:
        sizes(args.models.split(","), [int(size) for size in args.image_sizes.split(",")])


def scale(layer: str, factor: float, head: int | None = None) -> Edit:
    """Multiply weight and bias of every `layer` (q, k, v) by a factor, in all heads or in one."""

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if f".attn.{layer}/" in tensor.name or tensor.name.endswith(f".attn.{layer}.bias"):
                values = numpy_helper.to_array(tensor).copy()
                width = values.shape[-1] // HEADS
                chosen = slice(None) if head is None else slice(head * width, (head + 1) * width)
                values[..., chosen] *= np.float32(factor)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return edit


def eps(value: float, operator: str = "Clip") -> Edit:
    """Set another eps in every XNorm; "Add" makes it additive."""

    def edit(model: onnx.ModelProto) -> None:
        guards = {guard.node: guard.tensor for site in find_sites(model) for guard in site.eps}
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), "planted_eps"))
        for node in model.graph.node:
            if node.name in guards:
                node.input[1], node.op_type = "planted_eps", operator

    return edit


def other_axis(model: onnx.ModelProto) -> None:
    """Normalise the rows of K^T V instead of its columns."""
    names = {site.name for site in find_sites(model) if site.operand == "kv"}
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "planted_axis"))
    for node in model.graph.node:
        if node.name in names:
            node.input[1] = "planted_axis"
    del model.graph.value_info[:]  # the shapes after the norm change


def nan_weight(model: onnx.ModelProto) -> None:
    """Set one element of one W_K to NaN."""
    tensor = next(t for t in model.graph.initializer if ".attn.k/" in t.name)
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def large_gamma(network: UfoVit, gain: float = 1e4) -> None:
    """Set gammas to 10^4 and scale the output projection inversely: the same function in FP32."""
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            parameter.data.mul_(gain)
        elif name.endswith("attn.proj.weight"):
            parameter.data.div_(gain**2)


HEADS = SIZES["ufovit_t"].heads
FAULTS: dict[str, tuple[Edit, ...]] = {
    "none": (),
    "W_K x 2^8": (scale("k", 2.0**8),),
    "W_K x 2^12": (scale("k", 2.0**12),),
    "W_K x 2^16": (scale("k", 2.0**16),),
    "tokens near zero: W_Q x 2^-14": (scale("q", 2.0**-14),),
    "tokens near zero: W_K x 2^-14": (scale("k", 2.0**-14),),
    "one head nearly dead: W_K of head 0 x 2^-14": (scale("k", 2.0**-14, head=0),),
    "one head dead, eps 1e-12": (scale("k", 0.0, head=0), eps(1e-12)),
    "additive eps 1e-3, W_K x 2^8": (scale("k", 2.0**8), eps(1e-3, "Add")),
    "wrong axis, compared with the right one": (other_axis,),
    "NaN weight": (nan_weight,),
}


def faults(count: int) -> None:
    network, _ = load_checkpoint(SHIPPED_CHECKPOINT, model="ufovit_t")
    graph = exported(fold(network))
    rows = [(name, planted(graph, edits), TRAINED_AT, count) for name, edits in FAULTS.items()]
    large_gamma(network)
    rows.append(("gamma 10^4, left in the graph", exported(network), TRAINED_AT, count))
    rows.append(("gamma 10^4, folded by the export", exported(fold(network)), TRAINED_AT, count))
    for size, images in ((224, 200), (896, 12)):  # not the training size: accuracy is lower, in FP32 too
        larger, _ = load_checkpoint(SHIPPED_CHECKPOINT, model="ufovit_t", image_size=size)
        rows.append((f"{TRAINED_AT} -> {size} px", exported(fold(larger)), size, min(count, images)))
    print(f"Shipped ufovit_t, test images, {versions()}.\n")
    print("FP16: top-1, agreement with FP32, images with NaN or infinity, SQNR of the other logits.\n")
    print("| planted fault | images | top-1 in FP32 | FP16 without repair | certificate | FP16 with repair |")
    print("|---|---|---|---|---|---|")
    for name, model, size, images in rows:
        right = graph if other_axis in FAULTS.get(name, ()) else model
        print(f"| {name} | {images} | " + " | ".join(judge(model, right, size, images)) + " |", flush=True)


def judge(model: onnx.ModelProto, right: onnx.ModelProto, size: int, count: int) -> Iterator[str]:
    """Top-1 of the right graph in FP32; FP16 without repair; the certificate; FP16 with repair."""
    images, labels = test_images(size, count)
    reference = run(right, images)
    yield f"{accuracy(reference, labels):.1%}" if np.isfinite(reference).all() else "NaN"
    yield try_fp16(lambda: fp16_graph(model), images, reference, labels)
    try:
        done = certify_graph(
            model,
            calibration_batches(size, {TRAINED_AT: 512, 224: 64}.get(size, 4)),
            data_sha256="",
            config=CertifyConfig(("fp16",), True, 52, -2),
        )
    except UfovitError as error:
        yield f"refused: {str(error).splitlines()[0]}"
        yield "refused"
        return
    certificate = done.certificate
    yield f"{certificate.verdict_before} -> {certificate.verdict}" + (
        f", {certificate.islands.sites} FP32 islands" if certificate.islands.sites else ""
    )
    if certificate.verdict == "unstable":
        yield "refused"
        return
    yield try_fp16(lambda: fp16_graph(done.model, certificate), images, reference, labels)


def try_fp16(
    make: Callable[[], onnx.ModelProto], images: list[NDArray[Any]], reference: NDArray[Any], labels: NDArray[Any]
) -> str:
    try:
        logits = run(make(), images)
    except UfovitError as error:
        return f"cannot be typed: {str(error).splitlines()[0]}"
    if not np.isfinite(reference).all():
        return f"{accuracy(logits, labels):.1%}, -, {np.count_nonzero(~np.isfinite(logits).all(axis=1))}"
    comparison: Agreement = compare_logits(reference, logits)
    return f"{accuracy(logits, labels):.1%}, {comparison.agreement:.1%}, {comparison.not_finite}, {comparison.sqnr_db:.1f} dB"


def scales(count: int) -> None:
    network, _ = load_checkpoint(SHIPPED_CHECKPOINT, model="ufovit_t")
    graph = exported(fold(network))
    images, labels = test_images(TRAINED_AT, count)
    print(f"Shipped ufovit_t, {count:,} test images, 512 calibration images, {versions()}.\n")
    print("| W_K, b_K times | FP32 | FP16 without repair | FP16 with repair | exponents p | FP32 logits after folding |")
    print("|---|---|---|---|---|---|")
    for exponent in (0, 8, 12):
        model = planted(graph, (scale("k", 2.0**exponent),))
        done = certify_graph(model, calibration_batches(TRAINED_AT, 512), data_sha256="")
        certificate = done.certificate
        reference, folded = run(model, images), run(done.model, images)
        shown = [
            accuracy(side, labels)
            for side in (reference, run(fp16_graph(model), images), run(fp16_graph(done.model, certificate), images))
        ]
        used = sorted({site.fold_exponent for site in certificate.sites if site.operand == "kv"})
        same = "bit-identical" if np.array_equal(reference.view(np.uint32), folded.view(np.uint32)) else "DIFFERENT"
        print(
            f"| 2^{exponent} | " + " | ".join(f"{s:.2%}" for s in shown) + f" | {used[0]} to {used[-1]} | {same} |", flush=True
        )


def sizes(models: list[str], image_sizes: list[int]) -> None:
    print(f"Random weights with seed 0, except for the shipped ufovit_t; {versions()}.")
    print("Errors: emulated FP16 XNorm compared with float64, largest of the network.\n")
    print(
        "| model | px | images | seconds | before -> after | p of K^T V | FP32 sums | FP16 sums | FP16 sums before | logits |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    shipped, info = load_checkpoint(SHIPPED_CHECKPOINT, model="ufovit_t")
    report("shipped", exported(fold(shipped)), info.config.height)
    for name in models:
        for size in image_sizes:
            report(name, exported(fold(random_network(config(name, image_size=size, classes=10), 0))), size)


def report(name: str, model: onnx.ModelProto, size: int) -> None:
    count = image_budget(model, 512)
    started = time.monotonic()
    certificate = certify_graph(model, calibration_batches(size, count), data_sha256="").certificate
    seconds = time.monotonic() - started
    exponents = sorted({site.fold_exponent for site in certificate.sites if site.operand == "kv"})
    sites, before = certificate.sites, certificate.before
    errors = [max_error(sites, "fp16/fp32"), max_error(sites, "fp16"), max_error(before, "fp16")]
    assert certificate.checks is not None
    same = f"bit-identical on {certificate.checks.images}"
    verdicts = f"{certificate.verdict_before} -> {certificate.verdict}" + (
        f", {certificate.islands.sites} islands" if certificate.islands.sites else ""
    )
    print(
        f"| {name} | {size} | {certificate.images} | {seconds:.0f} | {verdicts} | {exponents[0]} to {exponents[-1]} | "
        + " | ".join(errors) + f" | {same} |",
        flush=True,
    )  # fmt: skip


def max_error(sites: tuple[Any, ...], mode: str) -> str:
    errors = [site.errors[mode] for site in sites]
    return "NaN" if None in errors else f"{max(errors):.1e}"


def exported(network: UfoVit) -> onnx.ModelProto:
    sides = network.cfg.height, network.cfg.width
    images = np.random.default_rng(0).normal(size=(2, 3, *sides)).astype(np.float32)
    return simplify(to_onnx(network), images)[0]


def planted(graph: onnx.ModelProto, edits: tuple[Edit, ...]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    for edit in edits:
        edit(model)
    return model


def test_images(size: int, count: int) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    info = read_info(SHIPPED_CHECKPOINT).for_image_size(size)
    images = open_images(TEST_IMAGES, info.labels).take(count)
    return list(images.batches(info.preprocess, BATCH if size < 256 else 4)), images.labels


def calibration_batches(size: int, count: int) -> Iterator[NDArray[Any]]:
    info = read_info(SHIPPED_CHECKPOINT).for_image_size(size)
    return open_images(CALIBRATION_IMAGES, info.labels).take(count).batches(info.preprocess, 32 if size < 256 else 4)


def run(model: onnx.ModelProto, images: list[NDArray[Any]]) -> NDArray[Any]:
    graph = TappedGraph(model, ("logits",), threads=0)
    return np.concatenate([graph(batch)["logits"] for batch in images])


def accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Top-1 accuracy in [0, 1]; an image with NaN or infinity counts as wrong."""
    finite = np.isfinite(logits).all(axis=1)
    return float((finite & (np.where(finite[:, None], logits, 0).argmax(axis=1) == labels)).mean())


def versions() -> str:
    import onnxruntime
    import torch

    return f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, numpy {np.__version__}"


if __name__ == "__main__":
    main()
