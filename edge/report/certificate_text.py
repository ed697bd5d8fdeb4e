"""The XNorm certificate in words: for the summary of a build, its report and the terminal."""

from collections.abc import Collection, Iterable

from edge.onnx_import.import_record import ImportRecord
from edge.stability.certificate import Int8Loss, SiteCertificate, XNormCertificate
from edge.stability.unjudged_norm import UnjudgedNorm
from edge.stability.verdict import STABILITIES, Judgement, Stability

_FLOATS = ("fp16", "bf16")
_LISTED = 6


def judgement(site: SiteCertificate, precisions: tuple[str, ...]) -> Judgement:
    """The worst verdict on a site in some precisions, the first of equally bad ones."""
    return max((site.verdicts[name] for name in precisions), key=lambda judged: STABILITIES.index(judged.verdict))


def site_rows(certificate: XNormCertificate) -> list[tuple[SiteCertificate, Judgement, Judgement, str]]:
    """Every XNorm that was repaired or is not stable, the worst first, then in graph order.

    Each with its worst verdict in any requested precision, before and after the repair, and the repair ("": none).
    """
    rows = []
    for old, new in zip(certificate.before or certificate.sites, certificate.sites, strict=True):
        before, after = judgement(old, certificate.precisions), judgement(new, certificate.precisions)
        repair = repair_text(old, new)
        if repair or after.verdict != "stable":
            rows.append((new, before, after, repair))
    return sorted(rows, key=lambda row: -STABILITIES.index(row[2].verdict))


def headline(certificate: XNormCertificate) -> str:
    """Summarize the certificate in one line: verdicts, their basis, repairs, verdicts before the repair."""
    precisions, sites = certificate.precisions, certificate.sites
    stable = [site for site in sites if judgement(site, precisions).verdict == "stable"]
    share = f"{len(stable)}" if len(stable) == len(sites) else f"{len(stable)} of {len(sites)}"
    parts = [f"{share} {xnorm_noun(len(sites))} stable in {precision_list(precisions)}"]
    if stable:
        parts[0] += f", {_basis(certificate, stable)}"
    parts += [f"{count} {verdict}" for verdict, count in _counts(sites, precisions).items() if verdict != "stable"]
    if folded := sum(bool(site.fold) for site in sites):
        parts.append(f"{folded} folded by powers of two")
    if certificate.islands.sites:
        parts.append(f"{certificate.islands.sites} in FP32 islands")
    if certificate.unjudged:
        parts.append(unjudged_text(certificate.unjudged))
    before = _counts(certificate.before, precisions)
    bad = " and ".join(f"{count} {verdict}" for verdict, count in before.items() if verdict != "stable")
    return "; ".join(parts) + (f" (before: {bad})" if bad else "")


def without_certificate(imported: ImportRecord) -> str:
    """What is not known of an INT8 build without FP16 layers and XNorms, which has no certificate, in a sentence."""
    norms = [UnjudgedNorm(name, reason) for name, reason in imported.unjudged_norms.items()]
    if not norms:
        return "no certificate: the network does not divide by an L2 norm"
    return f"no certificate: of the network's L2 norms, {unjudged_text(norms)}"


def unjudged_text(unjudged: Collection[UnjudgedNorm]) -> str:
    """The norms that no verdict covers, with the reasons; "none" without any."""
    norms = [f"{norm.name} ({norm.reason})" for norm in unjudged]
    more = f" and {len(norms) - _LISTED} more" if len(norms) > _LISTED else ""
    return f"{len(norms)} not judged: {'; '.join(norms[:_LISTED])}{more}" if norms else "none"


def verdict_counts(sites: Iterable[SiteCertificate], precision: str) -> str:
    """Number of sites by verdict in a precision: "50 stable, 2 at risk"."""
    return ", ".join(f"{count} {verdict}" for verdict, count in _counts(sites, (precision,)).items()) or "none"


def island_cost(certificate: XNormCertificate) -> str:
    """The cost of the FP32 islands."""
    cost = certificate.islands
    if not cost.sites:
        return "none"
    sites = f"{cost.sites} {xnorm_noun(cost.sites)} in FP32"
    return f"{sites}: {cost.casts} Casts, {cost.values_per_image:,} values of an image cross them"


def int8_loss(sites: Iterable[SiteCertificate]) -> str:
    """The worst loss by INT8 after the norm."""
    return int8_loss_text(Int8Loss(s.int8_dead_fraction, s.int8_direction_error, s.int8_clipped_fraction) for s in sites)


def _counts(sites: Iterable[SiteCertificate], precisions: tuple[str, ...]) -> dict[Stability, int]:
    """Worst verdict -> number of sites; only verdicts that occur, from best to worst."""
    verdicts = [judgement(site, precisions).verdict for site in sites]
    return {verdict: verdicts.count(verdict) for verdict in STABILITIES if verdict in verdicts}


def xnorm_noun(count: int) -> str:
    """XNorm, or XNorms."""
    return "XNorm" if count == 1 else "XNorms"


def precision_list(precisions: tuple[str, ...]) -> str:
    """FP16, BF16 and INT8."""
    *first, last = (name.upper() for name in precisions)
    return f"{', '.join(first)} and {last}" if first else last


def _basis(certificate: XNormCertificate, stable: list[SiteCertificate]) -> str:
    """The basis of the stable verdicts."""
    certified = certified_count(stable) if set(certificate.precisions) & set(_FLOATS) else 0
    if not certified:
        return f"as far as {certificate.images} images show"
    if certified == len(stable):
        return "overflow ruled out for every input"
    return f"overflow ruled out for every input at {certified}, at the others on {certificate.images} images only"


def certified_count(sites: Iterable[SiteCertificate]) -> int:
    """The number of sites with a bound for every input."""
    return sum(site.bound_sum_sq is not None for site in sites)


def repair_text(old: SiteCertificate, new: SiteCertificate) -> str:
    """How a site was repaired, "" for not at all."""
    parts = []
    if new.fold:
        weights = [f"{_local(weight, new.name)} {_power(exponents)}" for weight, exponents in new.fold.items()]
        parts.append(f"{_power((new.fold_exponent,))} ({', '.join(weights)})")
    if (old.eps, old.eps_kind) != (new.eps, new.eps_kind):
        parts.append(f"eps {old.eps} {old.eps_kind} -> {new.eps} {new.eps_kind}")
    return ", ".join([*parts, *(["FP32 island"] if new.island else [])])


def _local(weight: str, site: str) -> str:
    """A weight's name within the module of its site: `blocks.0.attn.k/MatMul.weight` -> `k/MatMul.weight`."""
    module, dot, _ = site.partition("/")[0].rpartition(".")
    return weight.removeprefix(module + dot)


def _power(exponents: tuple[int, ...]) -> str:
    """The factor 2^-exponent, or its range over the heads: 2^-3, or 2^-2 to 2^-4."""
    low, high = min(exponents), max(exponents)
    return f"2^{-low}" if low == high else f"2^{-low} to 2^{-high} by head"


def int8_loss_text(losses: Iterable[Int8Loss]) -> str:
    """The largest of each loss over the sites."""
    rows = [(loss.dead_fraction, loss.direction_error, loss.clipped_fraction) for loss in losses]
    dead, turned, clipped = map(max, zip(*rows, strict=True))
    return f"at worst {dead:.2%} dead vectors, direction error {turned:.3f}, {clipped:.2%} clipped"
