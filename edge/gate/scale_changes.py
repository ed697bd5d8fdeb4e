"""The scales of a build, read from its graph, and how far they are from a baseline's.

Answers are a coarse measure of them: one activation's scale that is doubled costs one bit of one tensor, which the rest of a
network may hide, and so may calibration on too few images. The scales themselves show both.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from calib.calibration_table import TABLE_ARTIFACT
from calib.files import canonical_json, sha256_bytes
from edge.gate.baseline import Scales
from edge.stability.certificate import XNormCertificate
from engines.build_folder.file_names import QUANTIZED, TYPED
from engines.build_folder.folder import BuildFolder

DIGITS = 3  # of log2: 0.07 %
UNREADABLE = "the package onnx, which reads the graph, is not installed: pip install 'ufovit-edge[build]'"
REFINED = "refined by "


def read_scales(build: BuildFolder, certificate: XNormCertificate | None) -> Scales | None:
    """The scales of a build; None where it has no quantized graph, or onnx is not installed.

    Raises InputError for a graph or table that cannot be read.
    """
    graph = next((name for name in (TYPED, QUANTIZED) if build.has(name)), None)
    table = build.find(TABLE_ARTIFACT)
    if graph is None or table is None or find_spec("onnx") is None:
        return None
    import onnx

    from calib.qdq_writer import read_qdq

    found = read_qdq(onnx.load_from_string(build.data(graph)))
    by_kind: dict[str, dict[str, float]] = {"activation": {}, "weight": {}}
    for name, info in found.items():
        by_kind[info.kind][name] = round(float(np.log2(info.scale).mean()), DIGITS)
    folds = {site.name: site.fold for site in certificate.sites} if certificate else {}
    made = "; ".join([table.method, *([REFINED + ", ".join(table.refinements)] if table.refinements else [])])
    return Scales(made, sha256_bytes(canonical_json(folds)), by_kind["activation"], by_kind["weight"])


@dataclass(frozen=True)
class Moved:
    """Tensor -> log2 of its scale in units of the baseline's. `remark` belongs behind what is said of them."""

    activations: dict[str, float]
    weights: dict[str, float]
    remark: str

    @property
    def count(self) -> int:
        """Scales compared."""
        return len(self.activations) + len(self.weights)

    @property
    def largest(self) -> tuple[str, float]:
        """The tensor whose scale moved most, and by how much."""
        every = self.activations | self.weights
        return max(every.items(), key=lambda item: abs(item[1]), default=("", 0.0))

    @property
    def mean(self) -> float:
        """Mean magnitude over the activations; the weights' scales do not depend on images."""
        return float(np.mean(np.abs(list(self.activations.values())))) if self.activations else 0.0


def incomparable(before: Scales, now: Scales | None) -> str:
    """Why the scales of two builds say nothing about each other; "" when they do."""
    if now is None:
        return UNREADABLE if find_spec("onnx") is None else ""
    if before.made != now.made:
        return f"calibrated otherwise: {before.made} became {now.made}"
    return "factors of this effort are chosen by the images, and scales move with them" if REFINED in now.made else ""


def not_quantized(before: Scales, now: Scales) -> list[str]:
    """Tensors that have a scale in the baseline alone."""
    return sorted((before.activations.keys() - now.activations.keys()) | (before.weights.keys() - now.weights.keys()))


def changes(before: Scales, now: Scales) -> Moved:
    """How far the scales of the baseline's tensors have moved; all of them are quantized in both.

    Whole powers of two are left out where the certificate folded other exponents, which moves scales by them.
    """
    refolded = before.folds_sha256 != now.folds_sha256

    def of(was: dict[str, float], found: dict[str, float]) -> dict[str, float]:
        moved = {name: found[name] - value for name, value in was.items()}
        return {name: change - round(change) if refolded else change for name, change in moved.items()}

    remark = "; whole powers of two are left out, other exponents were folded" if refolded else ""
    return Moved(of(before.activations, now.activations), of(before.weights, now.weights), remark)
