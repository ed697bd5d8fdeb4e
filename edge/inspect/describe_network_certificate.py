"""Describe certificate.json, the certificate of a whole network."""

from edge.inspect.describe_dataclass import limited
from edge.inspect.description import Description
from edge.stability.network_certificate import NetworkCertificate, SiteRecord
from edge.stability.verdict import STABILITIES


def describe_network_certificate(certificate: NetworkCertificate) -> Description:
    """certificate.json."""
    coverage, networks = certificate.coverage, certificate.emulated
    was = f" (before the repair: {certificate.verdict_before})" if certificate.checks is not None else ""
    cost = certificate.islands
    facts = {
        "verdict": f"{certificate.verdict.upper()} in {', '.join(certificate.precisions)}{was}",
        "images": str(certificate.images),
        "tensors": f"{coverage.judged} of {coverage.stored} judged, {coverage.certified} proven to fit FP16 for every input",
        "not judged": "; ".join(f"{place.name} ({place.reason})" for place in certificate.unjudged[:6]) or "none",
        "FP16 emulated": str(networks.before or "no"),
        "the same, repaired": str(networks.after or "no"),
        "precisions inside operators": f"{certificate.backend or 'no target'}, {certificate.precisions_source}",
        "islands": f"{cost.sites} sites, {cost.casts} Casts, {cost.values_per_image:,} values per image cross",
        "graph": f"sha256 {certificate.onnx_sha256}",
        "repaired graph": f"sha256 {certificate.repaired_onnx_sha256}" if certificate.repaired_onnx_sha256 else "none",
        "images' digest": f"sha256 {certificate.data_sha256}",
    }
    rows = [_line(site) for site in sorted(certificate.sites, key=_rank)]
    columns = ("kind", "site", "verdict in FP16", "why", "headroom", "repair")
    listing = limited("sites, the worst first", columns, rows)
    broken = "UNSTABLE: 16 bits cannot compute this network"
    return Description("network certificate", facts, (listing,), (broken,) if certificate.verdict == "unstable" else ())


def _rank(site: SiteRecord) -> tuple[int, float]:
    left = float("inf") if site.headroom_bits is None else site.headroom_bits
    return -STABILITIES.index(site.verdicts["fp16"].verdict), left


def _line(site: SiteRecord) -> tuple[str, ...]:
    judged, repair = site.verdicts["fp16"], site.repair
    left = "-" if site.headroom_bits is None else f"{site.headroom_bits:.1f} bits"
    power = f" by 2^{-repair.exponent}" if repair.exponent else ""
    return site.kind, site.name, judged.verdict, judged.reason, left, "" if repair.kind == "none" else repair.kind + power
