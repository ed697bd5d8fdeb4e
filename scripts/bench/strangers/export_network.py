#!/usr/bin/env python3
"""Export a network of the benchmark, with random weights, as its library and torch export it: nothing is simplified or renamed.

    python export_network.py NAME PHOTOS OUT        --list prints the names

Writes OUT/NAME.onnx, with NAME.onnx.data where the exporter writes one, and OUT/NAME.json: versions, size, preprocessing, and
the largest difference of ONNX Runtime's answers to torch's on photos, relative to the largest answer. Runs in the environment
of requirements.txt.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import own_networks
import torch
import torchvision_import  # noqa: F401  # before timm and torchvision
from architectures import ARCHITECTURES, Architecture
from live_parameters import enliven
from PIL import Image
from torch import Tensor, nn

STATISTICS, PARITY = (4, 8), 2
"""Batches and photos per batch that BatchNorm sees; photos that compare ONNX Runtime with torch."""
AXES = {"batch": 0, "height": 2, "width": 3}
LARGEST_DIFFERENCE = 1e-3


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print("\n".join(ARCHITECTURES))
        return
    name, photos, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    start = time.monotonic()
    architecture, path = ARCHITECTURES[name], out / f"{name}.onnx"
    images = load_photos(photos, STATISTICS[0] * STATISTICS[1], architecture)
    network = create(architecture, split(images, STATISTICS[1]))
    partial = path.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    export(network, architecture, images[:1], partial / path.name)
    difference = compare(network, images[:: len(images) // PARITY][:PARITY], partial / path.name, architecture)
    for file in partial.iterdir():
        file.replace(out / file.name)
    partial.rmdir()
    facts = {**describe(architecture), "difference": difference, "seconds": round(time.monotonic() - start, 1)}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    print(f"{name}: exported in {facts['seconds']} s, difference to torch {difference:.1e}")


def load_photos(folder: Path, count: int, architecture: Architecture) -> Tensor:
    """Photos float32 (count, 3, H, W), evenly spread over the sorted files, resized and normalized."""
    files = sorted(folder.glob("*.png"))
    height, width = architecture.size
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in architecture.norm)
    tensors = []
    for position in np.linspace(0, len(files) - 1, count).astype(int):
        with Image.open(files[position], formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), np.float32)
        tensors.append((torch.from_numpy(pixels.transpose(2, 0, 1) / 255) - mean) / std)
    return torch.stack(tensors)


def split(images: Tensor, size: int) -> list[Tensor]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def create(architecture: Architecture, batches: list[Tensor]) -> nn.Module:
    """The network in eval mode; its weights depend on its library and name alone."""
    seed = zlib.crc32(f"{architecture.library}/{architecture.model}".encode())
    torch.manual_seed(seed)
    network: nn.Module
    if architecture.library == "timm":
        import timm

        network = timm.create_model(architecture.model, pretrained=False, **architecture.arguments)
    elif architecture.library == "torchvision":
        from torchvision.models import get_model

        constructor: dict[str, Any] = {"weights": None, **architecture.arguments}
        if architecture.dense:
            constructor["weights_backbone"] = None
        network = get_model(architecture.model, **constructor)
    else:
        network = getattr(own_networks, architecture.model)()
    if architecture.wrap:
        network = getattr(own_networks, architecture.wrap)(network)
    enliven(network, batches, seed)
    return network.eval()


def export(network: nn.Module, architecture: Architecture, image: Tensor, path: Path) -> None:
    """Write the graph, with `architecture.free` axes free."""
    free = {AXES[axis]: axis for axis in architecture.free.split()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch's exporters
        if architecture.exporter == "ts":
            axes = {"input": free} if free else None
            torch.onnx.export(
                network, (image,), str(path), dynamo=False, opset_version=architecture.opset,
                input_names=["input"], dynamic_axes=axes,
            )  # fmt: skip
        else:
            shapes = (dict.fromkeys(free, torch.export.Dim.DYNAMIC),) if free else None
            example = torch.cat((image, image)) if free else image  # a batch of one would be taken for a constant
            torch.onnx.export(
                network, (example,), str(path), dynamo=True, opset_version=architecture.opset,
                dynamic_shapes=shapes, verbose=False,
            )  # fmt: skip


def compare(network: nn.Module, images: Tensor, path: Path, architecture: Architecture) -> float:
    """Largest difference of the file's answers to torch's, relative to the largest answer of that output."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    groups = [images] if "batch" in architecture.free else split(images, 1)
    largest = 0.0
    for group in groups:
        with torch.inference_mode():
            answer = network(group)
        expected = [item.numpy() for item in (answer if isinstance(answer, tuple | list) else (answer,))]
        outputs = session.run(None, {session.get_inputs()[0].name: group.numpy()})
        pairs = zip(expected, outputs, strict=True)
        largest = max(largest, *(relative(*pair) for pair in pairs))
    if not largest <= LARGEST_DIFFERENCE:
        raise SystemExit(f"{path}: ONNX Runtime's answers differ from torch's by {largest:.1e} of the largest answer")
    return largest


def relative(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def describe(architecture: Architecture) -> dict[str, Any]:
    """What a user of the file knows of it."""
    return {
        "library": architecture.library,
        "model": architecture.model,
        "exporter": architecture.exporter,
        "opset": architecture.opset,
        "free": architecture.free.split(),
        "size": list(architecture.size),
        "mean": list(architecture.norm[0]),
        "std": list(architecture.norm[1]),
        "dense": architecture.dense,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "onnx", "onnxscript")},
    }


if __name__ == "__main__":
    main()
