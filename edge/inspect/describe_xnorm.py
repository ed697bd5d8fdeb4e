"""Describe xnorm.json, the certificate of every XNorm."""

from pathlib import Path

from calib.artifact import Artifact
from calib.errors import ArtifactError
from edge.inspect.describe_dataclass import limited
from edge.inspect.description import Description
from edge.report import certificate_text as text
from edge.stability.certificate import CERTIFICATE_ARTIFACT, REMAKE, SiteCertificate, XNormCertificate
from edge.stability.verdict import STABILITIES
from engines.build_folder.file_names import XNORM


def describe_certificate(certificate: XNormCertificate) -> Description:
    """xnorm.json."""
    sites, precisions = certificate.sites, certificate.precisions
    was = f" (before the repair: {certificate.verdict_before})" if certificate.before else ""
    facts = {
        "verdict": f"{certificate.verdict.upper()} in {', '.join(precisions)}{was}",
        "in words": text.headline(certificate),
        "images": str(certificate.images),
    }
    for name in (*precisions, *(n for n in ("fp16", "bf16", "int8") if n not in precisions)):
        before = f" (before: {text.verdict_counts(certificate.before, name)})" if certificate.before else ""
        facts[f"XNorms in {name}"] = text.verdict_counts(sites, name) + before
    if certificate.unjudged:
        facts["norms not judged"] = text.unjudged_text(certificate.unjudged)
    certified = text.certified_count(sites)
    facts |= {
        "based on": f"certified maxima at {certified} of {len(sites)}, observed ones elsewhere; observed minima",
        "folded": _folded(sites),
        "islands": text.island_cost(certificate),
        "repair checked": _checks(certificate),
    }
    for key, meaning in (("fp16", "all of FP16"), ("fp16/fp32", "sums in FP32")):
        before = f" (before: {_worst_error(certificate.before, key)})" if certificate.before else ""
        facts[f"error, {meaning}"] = _worst_error(sites, key) + before
    facts |= {
        "INT8 after the norm": text.int8_loss(sites),
        "INT8 before the norm": text.int8_loss_text(site.int8_in_front for site in sites),
        "graph": f"sha256 {certificate.onnx_sha256}",
        "folded graph": f"sha256 {certificate.folded_onnx_sha256}" if certificate.folded_onnx_sha256 else "none",
        "images' digest": f"sha256 {certificate.data_sha256}",
    }
    rows = [_line(old, new, precisions) for old, new in _worst_first(certificate)]
    columns = ("XNorm", "operand", "verdict", "why", "sum a^2 observed", "for any input", "headroom", "repair")
    listing = limited("XNorms, smallest headroom first", columns, rows)
    broken = f"UNSTABLE: {text.precision_list(precisions)} cannot compute this network"
    return Description("XNorm certificate", facts, (listing,), (broken,) if certificate.verdict == "unstable" else ())


def _line(old: SiteCertificate, new: SiteCertificate, precisions: tuple[str, ...]) -> tuple[str, ...]:
    verdict = text.judgement(new, precisions)
    low = "-" if new.sum_sq_min is None else f"{new.sum_sq_min:.3g}"
    bound = "-" if new.bound_sum_sq is None else f"{new.bound_sum_sq:.3g}"
    observed, headroom = f"{low} .. {new.sum_sq_max:.3g}", f"{new.fp16_headroom_bits:.1f} bits"
    return (
        new.name,
        new.operand,
        verdict.verdict,
        verdict.reason,
        observed,
        bound,
        headroom,
        text.repair_text(old, new),
    )


def _worst_first(certificate: XNormCertificate) -> list[tuple[SiteCertificate, SiteCertificate]]:
    """Sites before and after the repair, by verdict, then by headroom below FP16's largest number."""

    def badness(pair: tuple[SiteCertificate, SiteCertificate]) -> tuple[int, float]:
        verdict = text.judgement(pair[1], certificate.precisions).verdict
        return -STABILITIES.index(verdict), pair[1].fp16_headroom_bits

    return sorted(zip(certificate.before or certificate.sites, certificate.sites, strict=True), key=badness)


def _folded(sites: tuple[SiteCertificate, ...]) -> str:
    folds = [site.fold for site in sites if site.fold]
    if not folds:
        return "none"
    weights = {weight for fold in folds for weight in fold}
    factors = [p for fold in folds for by_head in fold.values() for p in by_head]
    return f"{len(folds)} {text.xnorm_noun(len(folds))}, {len(weights)} weights times 2^{-max(factors)} to 2^{-min(factors)}"


def _checks(certificate: XNormCertificate) -> str:
    checks = certificate.checks
    if checks is None:
        return "nothing was repaired"
    logits = "the same to the last bit" if checks.logits_bit_identical else "NOT the same"
    ranges = "as scaled" if checks.ranges_as_scaled else "NOT as scaled"
    return f"on {checks.images} images FP32 logits are {logits}, ranges {ranges}"


def _worst_error(sites: tuple[SiteCertificate, ...], key: str) -> str:
    """The largest relative error of an emulated XNorm, and its site."""
    errors = {site.name: site.errors[key] for site in sites if key in site.errors}
    if not errors:
        return "not emulated"
    broken = [name for name, error in errors.items() if error is None]
    if broken:
        return f"NaN or infinity at {len(broken)}, first {broken[0]}"
    error, where = max((error, name) for name, error in errors.items() if error is not None)
    return f"{error:.2g} at worst, {where}"


def _parse(data: bytes, path: Path) -> XNormCertificate:
    """Raises ArtifactError unless there are sites, all with a verdict in all precisions, and as many before as after."""
    certificate = CERTIFICATE_ARTIFACT.parse(data, path)
    sites, before = certificate.sites, certificate.before
    known = {"fp16", "bf16", "int8"}
    whole = all(known <= site.verdicts.keys() for site in (*sites, *before)) and known >= set(certificate.precisions)
    if not (sites and whole and certificate.precisions and len(before) in (0, len(sites))):
        raise ArtifactError(
            "certificate without a verdict on every XNorm",
            where=path,
            found=f"{len(sites)} sites, {len(before)} before, precisions {', '.join(certificate.precisions)}",
            next_command=REMAKE,
        )
    return certificate


FULL_CERTIFICATE = Artifact(XNORM, _parse)
"""A certificate with a verdict on every XNorm, as a build leaves it."""
