"""The certificate of a whole network in words: for the summary of a build, its report and the terminal."""

from collections.abc import Iterator

from edge.report.certificate_text import precision_list
from edge.stability.kind_summaries import site_judgement, sites_before
from edge.stability.network_certificate import NetworkCertificate, Repair, SiteRecord
from edge.stability.verdict import STABILITIES, Judgement

KINDS = {
    "xnorm": "XNorm",
    "l2_norm": "L2 norm",
    "layer_norm": "LayerNorm",
    "rms_norm": "RMS norm",
    "instance_norm": "InstanceNorm",
    "group_norm": "GroupNorm",
    "response_norm": "response norm",
    "variance": "variance, mean of squares",
    "softmax": "softmax",
    "exponential": "power, exponential",
    "reciprocal": "division",
    "sum": "sum, pooling",
    "product": "product: MatMul, Conv",
    "residual": "residual stream",
    "output": "output",
    "constant": "constant",
    "other": "other tensor",
}
"""Kind of a site -> its name for people."""

SiteRow = tuple[SiteRecord, Judgement, Judgement, str]


def verdict_text(certificate: NetworkCertificate) -> str:
    """The verdict: "STABLE", or "STABLE in what is judged" where places are not."""
    partly = f" in what is judged, {_places(len(certificate.unjudged))} not judged" if certificate.unjudged else ""
    was = certificate.verdict_before
    before = f" (before the repair: {was})" if certificate.checks is not None and was != certificate.verdict else ""
    return f"{certificate.verdict.upper()}{partly}{before}"


def headline(certificate: NetworkCertificate) -> str:
    """One line: the verdict, what it covers, what was repaired, what the emulated network gives."""
    parts = [f"{verdict_text(certificate)} in {precision_list(certificate.precisions)}", coverage_text(certificate)]
    repairs = repairs_text(certificate)
    parts += [text for text in (f"repaired: {repairs}" * bool(repairs), emulated_text(certificate)) if text]
    return "; ".join(parts)


def coverage_text(certificate: NetworkCertificate) -> str:
    """How many tensors no input overflows in FP16."""
    cover = certificate.coverage
    proven = f"overflow ruled out for every input at {cover.certified:,} of {cover.stored:,} tensors"
    left = cover.stored - cover.judged
    observed = f", observed on {certificate.images} images at {cover.judged - cover.certified:,}"
    rest = observed * (cover.certified < cover.judged) + f", {left:,} not judged" * (left > 0)
    return proven + rest


def repairs_text(certificate: NetworkCertificate) -> str:
    """How many sites were repaired, by the kind of repair; empty for none."""
    kinds = [site.repair.kind for site in certificate.sites if site.repair.kind != "none"]
    counts = [f"{kinds.count(kind)} {_REPAIRED[kind]}" for kind in dict.fromkeys(kinds)]
    return ", ".join(counts)


def emulated_text(certificate: NetworkCertificate) -> str:
    """What the emulated FP16 network gives, as it is built; empty where it was not emulated."""
    emulated = certificate.emulated.after or certificate.emulated.before
    return f"FP16 emulated: {emulated}" if emulated is not None else ""


def islands_text(certificate: NetworkCertificate) -> str:
    """The cost of the FP32 islands; empty for none."""
    cost = certificate.islands
    if not cost.sites:
        return ""
    sites = f"{cost.sites} site{'s' * (cost.sites != 1)} in FP32"
    return f"{sites}: {cost.casts} Casts, {cost.values_per_image:,} values of an image cross them"


def site_rows(certificate: NetworkCertificate, *, xnorms: bool = True) -> list[SiteRow]:
    """Every site that is not stable or was repaired, the worst first: its worst verdict before and after, and the repair."""
    rows = list(_rows(certificate, xnorms=xnorms))
    return sorted(rows, key=lambda row: (-STABILITIES.index(row[2].verdict), -STABILITIES.index(row[1].verdict)))


def _rows(certificate: NetworkCertificate, *, xnorms: bool) -> Iterator[SiteRow]:
    old, precisions = sites_before(certificate), certificate.precisions
    for site in certificate.sites:
        if site.kind == "xnorm" and not xnorms:
            continue
        before = site_judgement(old.get((site.kind, site.name), site), precisions)
        after = site_judgement(site, precisions)
        if site.repair.kind != "none" or after.verdict != "stable":
            yield site, before, after, repair_text(site.repair)


def repair_text(repair: Repair) -> str:
    """A repair, such as "scaled in the weights by 2^-5"; empty for none."""
    power = f" by 2^{-repair.exponent}" if repair.exponent else ""
    return "" if repair.kind == "none" else repair.kind.replace("fp32", "FP32") + power


def _places(count: int) -> str:
    return f"{count} place{'s' * (count != 1)}"


_REPAIRED: dict[str, str] = {
    "scaled in the weights": "scaled in the weights",
    "scaled by a Mul": "scaled by a Mul",
    "another eps": "with another eps",
    "fp32 island": "in FP32 islands",
}
"""Kind of a repair -> what was done to some sites."""
