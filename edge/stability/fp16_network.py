"""A whole network with every rounding of FP16 emulated, against FP32."""

from dataclasses import dataclass

import numpy as np
import onnx

from calib.metrics import sqnr_db
from calib.ort_session import TappedGraph
from edge.stability.certificate import XNormCertificate
from edge.stability.finders.xnorm import find_sites
from edge.stability.float_formats import Float32
from edge.stability.islands import fp32_nodes
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph


@dataclass(frozen=True)
class Agreement:
    """FP16 against FP32 on some images: equal answers, images that are not finite, SQNR of the others' logits in dB."""

    images: int
    agreement: float
    not_finite: int
    sqnr_db: float

    def __str__(self) -> str:
        lost = f", {self.not_finite} with NaN or infinity" if self.not_finite else ""
        return f"{self.agreement:.2%} of {self.images} images answered alike{lost}, SQNR of the logits {self.sqnr_db:.1f} dB"


def fp16_graph(model: onnx.ModelProto, certificate: XNormCertificate | None = None) -> onnx.ModelProto:
    """The FP32 graph that computes what the network computes in FP16.

    With a certificate as a build computes it: its FP32 islands, FP32 accumulators for K^T V. Without one all in FP16, every sum
    included, like a plain conversion. Raises InputError for weights that overflow FP16.
    """
    kept = fp32_nodes(model, find_sites(model), certificate.island_names) if certificate else frozenset()
    return emulated_graph(type_graph(model, keep_fp32=kept))


def emulated_agreement(
    reference: onnx.ModelProto, model: onnx.ModelProto, certificate: XNormCertificate | None, images: Float32
) -> Agreement:
    """Compare `model` in emulated FP16 with `reference` in FP32 on images (B, ...)."""
    output = reference.graph.output[0].name
    expected = TappedGraph(reference, (output,), threads=0)(images)[output]
    logits = TappedGraph(fp16_graph(model, certificate), (output,), threads=0)(images)[output]
    return compare_logits(expected, logits)


def compare_logits(expected: Float32, logits: Float32) -> Agreement:
    """Agreement of logits (B, classes); an image with NaN or infinity has no answer."""
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    alike = finite & (np.where(finite[:, None], logits, 0).argmax(axis=1) == expected.argmax(axis=1))
    ratio = sqnr_db(expected[finite], logits[finite]) if finite.any() else float("-inf")
    return Agreement(len(expected), float(alike.mean()), int((~finite).sum()), ratio)
