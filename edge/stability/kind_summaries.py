"""A network's certificate by kind of site: how many, the worst verdict, the least headroom. onnx is not needed."""

from collections.abc import Iterable
from dataclasses import dataclass

from edge.stability.network_certificate import NetworkCertificate, SiteRecord
from edge.stability.site import SiteKind
from edge.stability.verdict import STABILITIES, Judgement, Stability, worst


@dataclass(frozen=True)
class KindSummary:
    """The sites of one kind, after the repair where one was asked for.

    Attributes:
        count: how many sites the certificate records; constants that are stable are not among them.
        verdict, verdict_before: the worst in the certificate's precisions, after and before the repair.
        headroom_bits: the least in FP16, see `SiteRecord`; None where nothing has to be held.
        tightest: name of the site with that headroom; empty without one.
        certified: sites whose verdict in FP16 is proven for every input.
        repaired: sites that were repaired.
    """

    kind: SiteKind
    count: int
    verdict: Stability
    verdict_before: Stability
    headroom_bits: float | None
    tightest: str
    certified: int
    repaired: int


def summarize_kinds(certificate: NetworkCertificate) -> tuple[KindSummary, ...]:
    """A summary of each kind of site, in the order in which they first occur."""
    kinds = dict.fromkeys(site.kind for site in certificate.sites)
    return tuple(_summarize(certificate, kind) for kind in kinds)


def site_judgement(site: SiteRecord, precisions: Iterable[str]) -> Judgement:
    """The worst verdict on a site in the precisions that it has one in, the first of equally bad ones."""
    judged = [site.verdicts[name] for name in precisions if name in site.verdicts]
    return max(judged, key=lambda judgement: STABILITIES.index(judgement.verdict), default=_NOT_ASKED)


def sites_before(certificate: NetworkCertificate) -> dict[tuple[str, str], SiteRecord]:
    """(kind, name) -> the record before the repair, of the sites that it changed."""
    return {(site.kind, site.name): site for site in certificate.before}


_NOT_ASKED = Judgement("stable", "observed", "not judged in these precisions")


def _summarize(certificate: NetworkCertificate, kind: SiteKind) -> KindSummary:
    old, precisions = sites_before(certificate), certificate.precisions
    sites = [site for site in certificate.sites if site.kind == kind]
    earlier = [old.get((site.kind, site.name), site) for site in sites]
    after, before = (worst([site_judgement(s, precisions).verdict for s in group]) for group in (sites, earlier))
    headroom, tightest = min(
        ((site.headroom_bits, site.name) for site in sites if site.headroom_bits is not None), default=(None, "")
    )
    certified = sum(site.verdicts["fp16"].rests_on == "certified" for site in sites)
    repaired = sum(site.repair.kind != "none" for site in sites)
    return KindSummary(kind, len(sites), after, before, headroom, tightest, certified, repaired)
