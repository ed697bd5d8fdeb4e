"""`certificate.json`: every site of a network, what 16 bits make of it, what was repaired, and what the emulated network gives.

onnx is not needed to read it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from calib.artifact import Artifact, parse_artifact, read_artifact
from calib.errors import ArtifactError
from edge.stability.certificate import REMAKE, Checks, IslandCost, SiteCertificate
from edge.stability.site import SiteKind
from edge.stability.unjudged_norm import UnjudgedNorm
from edge.stability.verdict import STABILITIES, Judgement, Stability, worst
from engines.build_folder.file_names import CERTIFICATE
from engines.fp16 import LARGEST

RepairKind = Literal["none", "scaled in the weights", "scaled by a Mul", "another eps", "fp32 island"]


@dataclass(frozen=True)
class Repair:
    """What was done to one site.

    Attributes:
        site: its name.
        kind: "scaled ..." multiplies what a norm reads by 2^-exponent, its eps along with it; "another eps" is one that FP16
            holds, of an XNorm that does not feel it on any image; an island computes in FP32.
        exponent: p; 0 for an island.
        nodes: names of the nodes that changed, or compute in FP32.
        exact: whether FP32 outputs are the same to the last bit, for every input.
    """

    site: str
    kind: RepairKind = "none"
    exponent: int = 0
    nodes: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class QuantityRecord:
    """One quantity of a site, see `edge.stability.site.Probe` and `Observed`.

    Attributes:
        name: in words.
        tensor: the stored tensor that holds it; empty for what exists inside an operator only.
        observed_max, observed_min: largest and smallest nonzero magnitude over the images; None without any.
        certified_max: for every input; None where nothing is proven.
        computed_in: type that holds it on the target.
        overflowing, vanishing: how many numbers FP16 rounds to infinity, and to zero, on these images.
    """

    name: str
    tensor: str
    observed_max: float
    observed_min: float | None
    certified_max: float | None
    computed_in: Literal["fp16", "fp32"]
    overflowing: int
    vanishing: int


@dataclass(frozen=True)
class SiteRecord:
    """One site.

    Attributes:
        kind, name, op_type: see `edge.stability.site.Site`.
        quantities: what 16 bits have to hold, and what the target computes in FP32.
        verdicts: "fp16" and "bf16" -> the verdict, its basis and reason; of an XNorm "int8" too.
        headroom_bits: least headroom in FP16 of what it has to hold, certified where that suffices; None for nothing to hold.
        repair: what was done.
    """

    kind: SiteKind
    name: str
    op_type: str
    quantities: tuple[QuantityRecord, ...]
    verdicts: dict[str, Judgement]
    headroom_bits: float | None
    repair: Repair


@dataclass(frozen=True)
class TensorRecord:
    """A stored tensor, to be drawn: smallest nonzero and largest magnitude observed, and the bound for every input."""

    name: str
    observed_min: float | None
    observed_max: float
    certified_max: float | None


@dataclass(frozen=True)
class Emulated:
    """The network in emulated FP16 compared with FP32.

    Attributes:
        images: how many.
        agreement: share of images with the same largest logit; None where the network gives no logits.
        not_finite: images with NaN or infinity where FP32 has a number.
        sqnr_db: of the outputs, at most SQNR_CAP_DB; None where no image is finite.
        refusal: why it cannot be emulated; empty where it can.
    """

    images: int
    agreement: float | None
    not_finite: int
    sqnr_db: float | None
    refusal: str = ""

    def __str__(self) -> str:
        if self.refusal:
            return self.refusal
        lost = f", {self.not_finite} with NaN or infinity" if self.not_finite else ""
        ratio = "no finite output" if self.sqnr_db is None else f"SQNR of the outputs {self.sqnr_db:.1f} dB"
        if self.agreement is None:
            return f"{self.images} images{lost}, {ratio}"
        return f"{self.agreement:.2%} of {self.images} images answered alike{lost}, {ratio}"


@dataclass(frozen=True)
class EmulatedNetworks:
    """The FP16 network as it is, and as it was repaired; None where it was not emulated."""

    before: Emulated | None
    after: Emulated | None


@dataclass(frozen=True)
class Coverage:
    """How much of a network is judged.

    Attributes:
        stored: float tensors that depend on the input.
        judged: those of them that belong to a site.
        certified: those that no input overflows in FP16: their bound is proven, and FP16 holds it.
        constants: weights and other constants; those that are stable have no record.
    """

    stored: int
    judged: int
    certified: int
    constants: int


@dataclass(frozen=True)
class NetworkCertificate:
    """`certificate.json`.

    Attributes:
        onnx_sha256: the FP32 graph that was certified.
        repaired_onnx_sha256: the graph that the repairs made of it; None when none were asked for.
        data_sha256: images and their preprocessing.
        backend: whose table of precisions was used, with its source in `precisions_source`; None for no target.
        precisions: what the verdict is over.
        sites: inputs and constants that are not stable first, then in graph order; after the repairs, where any were asked for.
        before: the sites that the repairs changed, as they were.
        tensors: every stored tensor in graph order, after the repairs.
        unjudged: places that the verdict does not cover.
        emulated: the FP16 network run on images, see `EmulatedNetworks`.
        verdict, verdict_before: the worst of the sites, the XNorms and the emulation.
        fp32_nodes: nodes of the FP32 islands, without those of XNorms (`edge.stability.islands`).
        islands: cost of all islands.
        checks: None without a repair.
        xnorms: the XNorms head by head, as in `xnorm.json`.
    """

    onnx_sha256: str
    repaired_onnx_sha256: str | None
    data_sha256: str
    images: int
    backend: str | None
    precisions_source: str
    precisions: tuple[str, ...]
    sites: tuple[SiteRecord, ...]
    before: tuple[SiteRecord, ...]
    tensors: tuple[TensorRecord, ...]
    unjudged: tuple[UnjudgedNorm, ...]
    emulated: EmulatedNetworks
    verdict: Stability
    verdict_before: Stability
    coverage: Coverage
    fp32_nodes: tuple[str, ...]
    islands: IslandCost
    checks: Checks | None
    xnorms: tuple[SiteCertificate, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields of the file."""
        return asdict(self)

    @property
    def island_names(self) -> frozenset[str]:
        """Names of the XNorms that are to compute in FP32."""
        return frozenset(site.name for site in self.xnorms if site.island)


def read_network_certificate(path: Path) -> NetworkCertificate:
    """Read `certificate.json`. Raises ArtifactError for one that is malformed or contradicts itself."""
    return _consistent(read_artifact(path, NetworkCertificate, remake=REMAKE), path)


def _parse(data: bytes, path: Path) -> NetworkCertificate:
    return _consistent(parse_artifact(data, path, NetworkCertificate, remake=REMAKE), path)


def _consistent(certificate: NetworkCertificate, path: Path) -> NetworkCertificate:
    """Raises ArtifactError for a certificate that contradicts itself."""
    for found in _contradictions(certificate):
        raise ArtifactError("the certificate contradicts itself", where=path, found=found, next_command=REMAKE)
    return certificate


def _contradictions(certificate: NetworkCertificate) -> Iterator[str]:
    """Verdicts that are missing or better than those of the sites, counts that are not those of what is listed, and bounds
    below an observation."""
    known, precisions = {"fp16", "bf16", "int8"}, certificate.precisions
    if not precisions or not known >= set(precisions):
        yield f"precisions {', '.join(precisions) or 'none'}"
    for sites, verdict in ((certificate.sites, certificate.verdict), (certificate.before, certificate.verdict_before)):
        for site in sites:
            if not {"fp16", "bf16"} <= site.verdicts.keys():
                yield f"no verdict on {site.name}"
            judged = [site.verdicts[name].verdict for name in precisions if name in site.verdicts]
            if STABILITIES.index(worst(judged)) > STABILITIES.index(verdict):
                yield f"{site.name} is {worst(judged)}, the network {verdict}"
    cover, bounds = certificate.coverage, [tensor.certified_max for tensor in certificate.tensors]
    counted = len(bounds), sum(bound is not None and bound <= LARGEST for bound in bounds)
    if (cover.judged, cover.certified) != counted or cover.stored < cover.judged:
        stated = f"{cover.certified} proven of {cover.judged} judged of {cover.stored} tensors"
        yield f"{stated}, {counted[1]} of {counted[0]} listed"
    for tensor in certificate.tensors:
        if tensor.certified_max is not None and tensor.certified_max < tensor.observed_max:
            yield f"{tensor.name} reached {tensor.observed_max:g}, and is bounded by {tensor.certified_max:g}"


NETWORK_ARTIFACT = Artifact(CERTIFICATE, _parse)
"""A certificate that does not contradict itself, as a build leaves it."""
