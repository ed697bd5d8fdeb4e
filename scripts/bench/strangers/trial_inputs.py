"""One network of the benchmark, the images that calibrate and judge it, and how well a quantized graph of it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from calib.files import sha256_bytes, sha256_file, write_json
from calib.graph import load_graph
from calib.json_reader import read_json
from calib.metrics import SQNR_CAP_DB, sqnr_db
from edge.images.labelled_images import open_unlabelled, spread_evenly
from edge.images.preprocess import Float32, Preprocess
from engines.layer_requests import read_layers

BATCH = 8
THREADS = 1
Outputs = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Trial:
    """A network and its images.

    Attributes:
        graph: the file as exported; NAME.json beside it says how.
        photos: folder with `calib` and `eval`.
        counts: images that calibrate and images that judge.
        folder: for temporary files; fp32.onnx, calib.npy and info.json as the scripts of `peers` read them.
    """

    graph: Path
    photos: Path
    counts: tuple[int, int]
    folder: Path

    @property
    def name(self) -> str:
        """Of the network and its export."""
        return self.graph.stem

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the exporting script recorded."""
        facts: dict[str, Any] = read_json(self.graph.with_suffix(".json"))
        return facts

    @cached_property
    def sha256(self) -> str:
        """Of the file, its external data and the choice of images."""
        data = self.graph.with_name(f"{self.graph.name}.data")
        digests = [sha256_file(file) for file in (self.graph, data) if file.is_file()]
        photos = [open_unlabelled(self.photos / split).sha256 for split in ("calib", "eval")]
        return sha256_bytes(repr((digests, photos, self.counts)).encode())

    @property
    def preprocess(self) -> Preprocess:
        """Shorter side to the longer side of the input, centre crop."""
        height, width = self.facts["size"]
        size: Any = height if height == width else (height, width)
        return Preprocess(size, max(height, width), tuple(self.facts["mean"]), tuple(self.facts["std"]))

    def images(self, split: str) -> Float32:
        """Preprocessed images of "calib" or "eval", (n, 3, H, W): those that the command line selects of the folder."""
        pictures = open_unlabelled(self.photos / split)
        positions = spread_evenly(len(pictures), self.counts[split == "eval"])
        return np.stack([self.preprocess(pictures.pixels(int(position))) for position in positions])

    def prepare(self) -> None:
        """Write fp32.onnx, with its weights inside, calib.npy, eval.npy and info.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        onnx.save(onnx.load(self.graph), self.folder / "fp32.onnx")
        for split in ("calib", "eval"):
            np.save(self.folder / f"{split}.npy", self.images(split))
        digests = {name: sha256_file(self.folder / name) for name in ("fp32.onnx", "calib.npy")}
        write_json(self.folder / "info.json", {"sha256": digests})

    @cached_property
    def reference(self) -> Outputs:
        """The answers of the file as exported, on the images that judge."""
        return run_graph(self.graph, np.load(self.folder / "eval.npy"))

    def judge(self, graph: Path) -> dict[str, Any]:
        """SQNR of a quantized graph's answers on the images that judge, and the share of the work that it asks INT8 for.

        `sqnr_db` is that of the worst output. `centred_sqnr_db` compares what differs between images alone: the mean over the
        images is taken from both sides.
        """
        answers = run_graph(graph, np.load(self.folder / "eval.npy"))
        pairs = list(zip(self.reference, answers, strict=True))
        centred = [(expected - expected.mean(axis=0), answer - answer.mean(axis=0)) for expected, answer in pairs]
        model, _ = load_graph(graph)
        layers = read_layers(model)
        int8 = sum(layer.macs for layer in layers if layer.requested == "int8")
        return {
            "sqnr_db": min(min(sqnr_db(*pair), SQNR_CAP_DB) for pair in pairs),
            "centred_sqnr_db": min(min(sqnr_db(*pair), SQNR_CAP_DB) for pair in centred),
            "int8_share": int8 / max(1, sum(layer.macs for layer in layers)),
        }


def run_graph(path: Path, images: Float32) -> Outputs:
    """All outputs, float64 (n, ...) each, in ONNX Runtime on the CPU with Q/DQ computed as written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    fixed = source.shape[0] if isinstance(source.shape[0], int) else BATCH
    parts = [session.run(None, {source.name: batch}) for batch in _batches(images, fixed)]
    return [np.concatenate(outputs).astype(np.float64) for outputs in zip(*parts, strict=True)]


def _batches(images: Float32, size: int) -> Iterator[Float32]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
