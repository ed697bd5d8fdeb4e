"""Read the quantization scales of a build from its graph, and compare them with a baseline's; why: `docs/gate.md`."""

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
    """Read the scales of a build; None where it has no quantized graph, or onnx is not installed.

    Raises InputError for a graph or table that cannot be read.
    """
    graph = next((name for name in (TYPED, QUANTIZED) if build.has(name)), None)
    table = build.find(TABLE_ARTIFACT)
    if graph is None or table is None or find_spec("onnx") is None:
        return None
    from calib.graph import parse_graph
    from calib.qdq_writer import read_qdq

    by_kind: dict[str, dict[str, float]] = {"activation": {}, "weight": {}}
    for name, info in read_qdq(parse_graph(build.data(graph), build.path / graph)).items():
        by_kind[info.kind][name] = round(float(np.log2(info.scale).mean()), DIGITS)
    folds = {site.name: site.fold for site in certificate.sites} if certificate else {}
    method = "; ".join([table.method, *([REFINED + ", ".join(table.refinements)] if table.refinements else [])])
    return Scales(method, sha256_bytes(canonical_json(folds)), by_kind["activation"], by_kind["weight"])


def incomparable(before: Scales, now: Scales | None) -> str:
    """Why the scales of two builds cannot be compared; "" when they can."""
    if now is None:
        return UNREADABLE if find_spec("onnx") is None else ""
    if before.made != now.made:
        return f"calibrated differently: {before.made} became {now.made}"
    return "factors of this effort are chosen by the images, and scales move with them" if REFINED in now.made else ""


def not_quantized(before: Scales, now: Scales) -> list[str]:
    """Tensors that have a scale in the baseline but not in the build."""
    return sorted((before.activations.keys() - now.activations.keys()) | (before.weights.keys() - now.weights.keys()))


def compare_scales(before: Scales, now: Scales) -> tuple[dict[str, float], dict[str, float], str]:
    """log2 of each scale relative to the baseline's: of activations, of weights, and a remark on both.

    Whole powers of two are left out where the certificate folded other exponents, which change scales by powers of two. Every
    tensor of the baseline is quantized in both.
    """
    refolded = before.folds_sha256 != now.folds_sha256

    def subtract(old: dict[str, float], new: dict[str, float]) -> dict[str, float]:
        changes = {name: new[name] - value for name, value in old.items()}
        return {name: change - round(change) if refolded else change for name, change in changes.items()}

    remark = "; whole powers of two are left out, other exponents were folded" if refolded else ""
    return subtract(before.activations, now.activations), subtract(before.weights, now.weights), remark
