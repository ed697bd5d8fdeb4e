"""A certificate of a whole network made from its own dataclasses: a site of each kind that is stable, repaired, unproven."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from calib.artifact import write_artifact
from calib.files import sha256_file
from edge.stability.certificate import Checks, IslandCost
from edge.stability.network_certificate import (
    Coverage,
    Emulated,
    EmulatedNetworks,
    NetworkCertificate,
    QuantityRecord,
    Repair,
    SiteRecord,
    TensorRecord,
)
from edge.stability.site import SiteKind
from edge.stability.unjudged_norm import UnjudgedNorm
from edge.stability.verdict import Judgement, Stability

BLOCKS = 3
HIDDEN = "<script>alert(1)</script>"
"""A name that must not become a tag."""


def quantity(tensor: str, seen: float, bound: float | None, *, inner: bool = False, fp32: bool = False) -> QuantityRecord:
    """A stored tensor, or the sum of squares of one inside an operator."""
    name = f"the sum of squares of {tensor}" if inner else tensor
    return QuantityRecord(name, "" if inner else tensor, seen, seen / 4096, bound, "fp32" if fp32 else "fp16", 0, 0)


def site(
    kind: SiteKind, name: str, *quantities: QuantityRecord, verdict: Stability = "stable", bits: float = 4.0
) -> SiteRecord:
    """A site with this verdict in FP16, stable in BF16."""
    proven = all(q.certified_max is not None for q in quantities)
    reason = {"stable": f"{bits:.1f} bits left", "at risk": "another image may overflow", "unstable": "x overflows"}[verdict]
    basis = "certified" if proven and verdict == "stable" else "observed"
    fine = Judgement("stable", "certified", "119.0 bits left")
    verdicts = {"fp16": Judgement(verdict, basis, reason), "bf16": fine}
    return SiteRecord(kind, name, name.rpartition("/")[2], quantities, verdicts, bits, Repair(name))


def network_certificate(
    onnx_sha256: str = "0" * 64, repaired_sha256: str = "1" * 64, *, unstable: bool = False, blocks: int = BLOCKS
) -> NetworkCertificate:
    """Per block a LayerNorm scaled by the repair, a softmax, a residual stream without a proof; then the output.

    The softmax of the last block is in an FP32 island, or stays `unstable`.
    """
    sites, before, tensors = list[SiteRecord](), list[SiteRecord](), list[TensorRecord]()
    for i in range(blocks):
        norm, logits, stream = (f"blocks.{i}.{name}" for name in ("norm/Mul_output", "attn/MatMul_output", "Add_output"))
        stored, name = quantity(norm, 40.0, 300.0), f"blocks.{i}.norm/ReduceMean"
        old = site("layer_norm", name, stored, quantity(norm, 2e5, 9e6, inner=True), verdict="unstable", bits=-7.0)
        new = site("layer_norm", name, stored, quantity(norm, 200.0, 9000.0, inner=True), bits=2.9)
        before.append(old)
        sites.append(replace(new, repair=Repair(old.name, "scaled in the weights", 5)))
        last = i == blocks - 1
        wide = quantity(logits, 1e5 if last else 100.0, None if last else 200.0)
        softmax = site("softmax", f"blocks.{i}.attn/Softmax", wide, verdict="unstable" if last else "stable", bits=8.4)
        if last and not unstable:
            before.append(softmax)
            held = quantity(logits, 1e5, None, fp32=True)
            softmax = replace(site("softmax", softmax.name, held), headroom_bits=None,
                              repair=Repair(softmax.name, "fp32 island", 0, (softmax.name,)))  # fmt: skip
        sites += [softmax, site("residual", f"blocks.{i}/Add", quantity(stream, 500.0 + i, None), bits=7.0 - i)]
        tensors += [TensorRecord(norm, 0.01, 40.0, 300.0), TensorRecord(logits, 0.5, wide.observed_max, wide.certified_max)]
        tensors.append(TensorRecord(stream, 0.125, 500.0 + i, None))
    sites.append(site("output", f"head/{HIDDEN}", quantity("logits", 12.0, 64.0), bits=10.0))
    tensors.append(TensorRecord("logits", 0.25, 12.0, 64.0))
    lost, fine = Emulated(16, 0.25, 3, None), Emulated(16, 1.0, 0, 58.5)
    verdict: Stability = "unstable" if unstable else "stable"
    proven = sum(tensor.certified_max is not None for tensor in tensors)
    cover, islands = Coverage(len(tensors) + 1, len(tensors), proven, 77), IslandCost(0 if unstable else 1, 2, 4096)
    return NetworkCertificate(
        onnx_sha256, repaired_sha256, "7" * 64, 384, "trt_rtx", "measured: plan text", ("fp16", "bf16"), tuple(sites),
        tuple(before), tuple(tensors), (UnjudgedNorm(f"If_{HIDDEN}", "its branches are not judged"),),
        EmulatedNetworks(lost, lost if unstable else fine), verdict, "unstable",
        cover, (), islands, Checks(16, logits_bit_identical=True, ranges_as_scaled=True), (),
    )  # fmt: skip


def add_certificate(folder: Path, *, unstable: bool = False) -> NetworkCertificate:
    """Write a certificate of the graphs in a folder; its digest is to be recorded."""
    digests = (sha256_file(folder / name) for name in ("model.onnx", "model.folded.onnx"))
    certificate = network_certificate(*digests, unstable=unstable)
    write_artifact(folder / "certificate.json", certificate)
    return certificate
