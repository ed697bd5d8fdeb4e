#!/usr/bin/env python3
"""Build engines of the whole model family without a GPU: size, build time, INT8 share and kernels, read from the engines.

    scripts/install.sh build rtx
    python scripts/bench/engine_sizes.py --out build/bench/engines

Each row is `ufovit build MODEL PRECISION --random-weights --image-size N --batch 1,4,8 --target rtx`, with few images: an
engine's size and kernels do not depend on its accuracy. Finished rows are stored in OUT/rows.json; the same command resumes
after an interruption. `--twice` builds every engine twice and compares the bytes of graph and engine. The table is Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.files import sha256_file, write_json
from calib.json_reader import read_json
from edge.model.sizes import SIZES
from edge.pipeline.build import build_model
from edge.pipeline.build_request import BuildRequest
from engines.build_folder.file_names import MANIFEST, MODEL, QUANTIZED, TYPED
from engines.build_folder.folder import BuildFolder
from engines.build_spec import PRECISIONS, BatchRange
from engines.targets import TARGETS

CALIBRATION_IMAGES, EVALUATION_IMAGES = 32, 2
GRAPH = {"fp32": MODEL, "fp16": TYPED, "int8": TYPED}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build engines of the whole model family without a GPU.")
    parser.add_argument("--out", type=Path, default=Path("build/bench/engines"))
    parser.add_argument("--models", default=",".join(SIZES))
    parser.add_argument("--image-sizes", default="224,448", help="pixels")
    parser.add_argument("--twice", action="store_true", help="build twice and compare the bytes")
    args = parser.parse_args()
    rows_file = args.out / "rows.json"
    rows: dict[str, Any] = read_json(rows_file) if rows_file.exists() else {}
    for size in map(int, args.image_sizes.split(",")):
        for model in args.models.split(","):
            for precision in PRECISIONS:
                key, folder = f"{model}-{precision}-{size}", args.out / f"{model}-{size}"  # the export is shared
                if key not in rows:
                    rows[key] = measure(model, precision, size, folder)
                    write_json(rows_file, rows)
                    print(key, rows[key], flush=True)
                if args.twice and "same_graph" not in rows[key]:
                    rows[key].update(repeat(model, precision, size, folder))
                    write_json(rows_file, rows)
                    print(key, rows[key], flush=True)
    print(f"\nTensorRT-RTX {version('tensorrt_rtx')}, torch {version('torch')}, ONNX Runtime {version('onnxruntime')}\n")
    print("\n".join(table(rows)))


class Stopwatch:
    """Progress that records the seconds of each step of a build."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print nothing."""

    @contextlib.contextmanager
    def task(self, title: str) -> Iterator[Callable[[float], None]]:
        """Time a step."""
        started = time.monotonic()
        yield lambda _share: None
        self.seconds[title] = time.monotonic() - started


def measure(model: str, precision: str, size: int, out: Path) -> dict[str, Any]:
    """Build one engine and read its receipt."""
    watch = Stopwatch()
    build_model(request(model, precision, size, out), watch)
    manifest = BuildFolder(out).manifest
    receipt = manifest.receipt
    return {
        "model": model,
        "precision": precision,
        "image_size": size,
        "bytes": manifest.engine.bytes,
        "seconds": watch.seconds["engine"],
        "shares": receipt.actual,
        "kernels": receipt.kernels,
    }


def repeat(model: str, precision: str, size: int, out: Path) -> dict[str, bool]:
    """Rebuild every step and compare the files with those of the first build."""
    files = {"same_graph": GRAPH[precision], "same_engine": BuildFolder(out).manifest.engine.file}
    if precision == "int8":
        files["same_qdq"] = QUANTIZED
    before = {name: sha256_file(out / file) for name, file in files.items()}
    (out / MANIFEST).unlink()
    build_model(request(model, precision, size, out, force=True), Stopwatch())
    return {name: sha256_file(out / file) == before[name] for name, file in files.items()}


def request(model: str, precision: str, size: int, out: Path, *, force: bool = False) -> BuildRequest:
    """The request of one build."""
    return BuildRequest(
        model=model,
        precision=precision,  # type: ignore[arg-type]  # one of PRECISIONS
        target=TARGETS["rtx"],
        out=out,
        random_weights=True,
        image_size=size,
        batch=BatchRange(1, 4, 8),
        calib_images=CALIBRATION_IMAGES,
        eval_images=EVALUATION_IMAGES,
        force=force,
    )


def table(rows: dict[str, Any]) -> Iterator[str]:
    """The rows as Markdown."""
    yield "| model | px | precision | engine | built in | INT8 share of the MACs | other | kernels |"
    yield "|---|---|---|---|---|---|---|---|"
    order = [f"{m}-{p}-{s}" for s in sorted({row["image_size"] for row in rows.values()}) for m in SIZES for p in PRECISIONS]
    for row in (rows[key] for key in order if key in rows):
        others = ", ".join(f"{share:.1%} {name}" for name, share in row["shares"].items() if name != "int8")
        built = f"{row['bytes'] / 1e6:.1f} MB | {row['seconds']:.0f} s | {row['shares'].get('int8', 0.0):.1%}"
        yield f"| {row['model']} | {row['image_size']} | {row['precision']} | {built} | {others} | {row['kernels']} |"


if __name__ == "__main__":
    main()
