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
import onnx.version_converter

from calib.files import sha256_bytes, sha256_file, write_json
from calib.graph import load_graph, opset_version
from calib.json_reader import read_json
from calib.metrics import power_ratio_db
from edge.images.labelled_images import open_unlabelled, spread_evenly
from edge.images.preprocess import Float32, Preprocess
from engines.layer_requests import read_layers

BATCH = 8
PEER_OPSET = 13
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
        """Write fp32.onnx, with its weights inside, calib.npy, eval.npy and info.json.

        Older opsets are raised to PEER_OPSET: the peer quantizes weights per channel, which the older ones do not allow.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        model = onnx.load(self.graph)
        if opset_version(model) < PEER_OPSET:
            model = onnx.version_converter.convert_version(model, PEER_OPSET)
        onnx.save(model, self.folder / "fp32.onnx")
        for split in ("calib", "eval"):
            np.save(self.folder / f"{split}.npy", self.images(split))
        digests = {name: sha256_file(self.folder / name) for name in ("fp32.onnx", "calib.npy")}
        write_json(self.folder / "info.json", {"sha256": digests})

    def judge(self, graph: Path) -> dict[str, Any]:
        """SQNR of a quantized graph's answers on the images that judge, and the share of the work that it requests INT8 for.

        `sqnr_db` is that of the worst output, `worst` its position, `noise` its sums of squared errors by image.
        `centred_sqnr_db` compares only what differs between images: the mean over the images is subtracted from both sides.
        """
        images = np.load(self.folder / "eval.npy")
        sums: list[OutputSums] = []
        for expected, answers in run_batches((self.graph, graph), images):
            sums = sums or [OutputSums() for _ in expected]
            for output, *pair in zip(sums, expected, answers, strict=True):
                output.add(*pair)
        model, _ = load_graph(graph)
        layers = read_layers(model)
        total = sum(layer.macs for layer in layers)
        decibels = [output.sqnr_db(centred=False) for output in sums]
        worst = decibels.index(min(decibels))
        figures = {
            "sqnr_db": decibels[worst],
            "centred_sqnr_db": min(output.sqnr_db(centred=True) for output in sums),
            "worst": worst,
            "noise": sums[worst].noise,
        }
        if total:  # a graph with free axes has no count
            figures["int8_share"] = sum(layer.macs for layer in layers if layer.requested == "int8") / total
        return figures


class OutputSums:
    """Sums over images of one output and of its error, per element and of squares: maps of many images need not be kept."""

    def __init__(self) -> None:
        self._images = 0
        self._squares = np.zeros(2)
        self._sums: Any = np.zeros((2, 1))
        self.noise: list[float] = []

    def add(self, expected: npt.NDArray[Any], answer: npt.NDArray[Any]) -> None:
        """A batch (n, ...) of answers, as expected and of the quantized graph. NaN and infinity count as infinite noise."""
        pair = np.stack([expected, expected - answer.astype(np.float64)]).reshape(2, len(expected), -1)
        self._images += len(expected)
        by_image = np.square(pair).sum(axis=2)
        self._squares = self._squares + by_image.sum(axis=1)
        self.noise += by_image[1].tolist()
        self._sums = self._sums + pair.sum(axis=1)

    def sqnr_db(self, *, centred: bool) -> float:
        """10 log10 of the sum of squares of the output over that of the error, of both less their mean if `centred`."""
        signal, noise = self._squares - centred * np.square(self._sums).sum(axis=1) / self._images
        return power_ratio_db(float(signal), float(noise))


def open_session(path: Path) -> Any:
    """ONNX Runtime on the CPU, Q/DQ computed as written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_batches(paths: tuple[Path, ...], images: Float32) -> Iterator[list[Outputs]]:
    """All outputs (n, ...) of every graph, a few images at a time."""
    sessions = [open_session(path) for path in paths]
    sources = [session.get_inputs()[0] for session in sessions]
    size = min(source.shape[0] if isinstance(source.shape[0], int) else BATCH for source in sources)
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield [session.run(None, {source.name: batch}) for session, source in zip(sessions, sources, strict=True)]
