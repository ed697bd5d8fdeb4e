"""Describe certificate.json, the certificate of a whole network."""

from edge.inspect.describe_dataclass import limited
from edge.inspect.description import Description, Listing
from edge.report import network_words as words
from edge.report.certificate_text import precision_list
from edge.stability.kind_summaries import KindSummary, summarize_kinds
from edge.stability.network_certificate import Emulated, NetworkCertificate


def describe_network(certificate: NetworkCertificate) -> Description:
    """certificate.json: the verdict and its basis, a row per kind of site, the sites that are not stable or were repaired."""
    precisions = certificate.precisions
    facts = {
        "verdict": f"{words.verdict_text(certificate)} in {precision_list(precisions)}",
        "images": str(certificate.images),
        "based on": words.coverage_text(certificate),
        "constants": f"{certificate.coverage.constants} checked",
        "target": f"{certificate.backend or 'none'}; what it computes in FP32: {certificate.precisions_source}",
        "emulated as it is": _emulated(certificate.emulated.before),
        "emulated repaired": _emulated(certificate.emulated.after),
        "repairs": words.repairs_text(certificate) or "none",
        "islands": words.islands_text(certificate) or "none",
        "repair checked": _checks(certificate),
        "graph": f"sha256 {certificate.onnx_sha256}",
        "repaired graph": f"sha256 {certificate.repaired_onnx_sha256}" if certificate.repaired_onnx_sha256 else "none",
        "images' digest": f"sha256 {certificate.data_sha256}",
    }
    columns = ("place", "kind", "before", "after", "why", "repair")
    rows = [
        (site.name, words.KINDS[site.kind], before.verdict, after.verdict, after.reason, repair)
        for site, before, after, repair in words.site_rows(certificate)
    ]
    listings = [kinds_listing(certificate), *([limited("Not stable, or repaired", columns, rows)] if rows else [])]
    if certificate.unjudged:
        unjudged = [(place.name, place.reason) for place in certificate.unjudged]
        listings.append(limited("Not judged", ("place", "why"), unjudged))
    broken = f"UNSTABLE: {precision_list(precisions)} cannot compute this network"
    return Description(
        "Network certificate", facts, tuple(listings), (broken,) if certificate.verdict == "unstable" else ()
    )  # fmt: skip


def kinds_listing(certificate: NetworkCertificate) -> Listing:
    """A row per kind of site."""
    columns = ("kind", "count", "worst", "least headroom", "there", "proven", "repaired")
    return Listing("Places by kind, 16 bits", columns, tuple(_kind(kind) for kind in summarize_kinds(certificate)))


def _kind(kind: KindSummary) -> tuple[str, ...]:
    changed = kind.verdict_before != kind.verdict
    return (
        words.KINDS[kind.kind],
        str(kind.count),
        f"{kind.verdict_before} > {kind.verdict}" if changed else kind.verdict,
        "-" if kind.headroom_bits is None else f"{kind.headroom_bits:.1f} bits",
        kind.tightest,
        f"{kind.certified} of {kind.count}",
        str(kind.repaired) if kind.repaired else "",
    )


def _emulated(emulated: Emulated | None) -> str:
    return "no" if emulated is None else str(emulated)


def _checks(certificate: NetworkCertificate) -> str:
    checks = certificate.checks
    if checks is None:
        return "nothing was repaired"
    identical = "bit-identical" if checks.logits_bit_identical else "NOT the same"
    return f"FP32 outputs before and after are {identical} on {checks.images} images"
