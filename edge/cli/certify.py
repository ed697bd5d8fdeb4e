"""`ufovit certify`: check that FP16, BF16 and INT8 can represent every XNorm of a graph, and repair it if not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.pipeline.certify_request import CertifyOptions, CertifyRequest

if TYPE_CHECKING:
    from onnx import ModelProto
    from rich.console import Console

    from edge.cli.console import TerminalProgress
    from edge.pipeline.certify_inputs import CertifyInputs
    from edge.stability.certificate import SiteCertificate, XNormCertificate
    from edge.stability.certify import Certification, CertifyConfig

_WIDTH = 160
_DEFAULT = CertifyOptions()
_STYLE = {"stable": "green", "at risk": "yellow", "unstable": "bold red"}


def certify(source: Path, /, *, options: CertifyOptions = _DEFAULT) -> int:
    """Certify every XNorm: its range on images, its bound for any input, and whether 16 bits can represent it.

    Exit codes: 0 stable or at risk, 1 unstable (after the repair, if --repair is given), 2 bad input, 4 something this
    machine lacks.

    Args:
        source: An ONNX file (FP32), or a build folder
    """
    from edge.cli.console import terminal_progress
    from edge.images.labelled_images import data_digest
    from edge.pipeline.certify_inputs import resolve
    from edge.runtime.ort_runner import tapped_batch
    from edge.stability.certify import certify_graph

    progress = terminal_progress()
    request = CertifyRequest(source, **vars(options))
    inputs = resolve(request)
    with progress.task(f"{len(inputs.images)} images") as advance:
        done = certify_graph(
            inputs.model,
            inputs.images.batches(inputs.preprocess, tapped_batch(inputs.preprocess.image_size)),
            data_sha256=data_digest(inputs.images, inputs.preprocess),
            onnx_sha256=inputs.sha256,
            config=_config(request, inputs),
            progress=lambda count: advance(count / len(inputs.images)),
        )
    print_certificate(progress.console, done.certificate)
    _write(request, done, progress)
    if request.emulate:
        _emulate(request, inputs, done, progress)
    return 1 if done.certificate.verdict == "unstable" else 0


def _config(request: CertifyRequest, inputs: CertifyInputs) -> CertifyConfig:
    from edge.stability.certify import CertifyConfig

    config = CertifyConfig(repair=request.repair is not None)
    if request.precision:
        config = replace(config, precisions=request.precision)
    if inputs.info is not None:
        network = inputs.info.config
        config = replace(config, expected_sites=network.xnorm_sites, kv_axis=network.xnorm_kv_axis)
    return config


def _write(request: CertifyRequest, done: Certification, progress: TerminalProgress) -> None:
    """Write the files that the options name."""
    from calib.artifact import write_artifact
    from calib.files import write_bytes
    from calib.qdq_writer import serialize

    verdict, repair = done.certificate.verdict, request.repair
    if repair is not None and verdict == "unstable":
        progress.say(f"graph        not written: {repair} would be unstable too")
    elif repair is not None:
        write_bytes(repair, serialize(done.model))
        progress.say(f"graph        {repair}")
    elif verdict != "stable":
        progress.say(f"next         ufovit certify {request.source} --repair folded.onnx")
    if request.out is not None:
        write_artifact(request.out, done.certificate)
        progress.say(f"certificate  {request.out}")


def _emulate(request: CertifyRequest, inputs: CertifyInputs, done: Certification, progress: TerminalProgress) -> None:
    (batch,) = inputs.images.take(request.emulate).batches(inputs.preprocess, request.emulate)
    progress.say(f"FP16 emulated, as it is: {_emulated(inputs.model, inputs.model, None, batch)}")
    if request.repair is not None:
        progress.say(f"FP16 emulated, repaired: {_emulated(inputs.model, done.model, done.certificate, batch)}")


def _emulated(reference: ModelProto, graph: ModelProto, certificate: XNormCertificate | None, images: Any) -> str:
    """FP16 compared with FP32 as a sentence; for a graph that cannot be converted to FP16, the reason."""
    from calib.errors import InputError
    from edge.stability.fp16_network import emulated_agreement

    try:
        return str(emulated_agreement(reference, graph, certificate, images))
    except InputError as error:
        return " ".join(str(error).split())


def print_certificate(console: Console, certificate: XNormCertificate) -> None:
    """A row per XNorm, then the verdict."""
    from rich.table import Table

    from edge.cli.console import wide

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("XNorm", "operand", "sum a² observed", "for any input", "headroom", "floor", "fp16", "bf16", "int8", "2^-p"):
        table.add_column(
            column, overflow="fold", justify="left" if column in ("XNorm", "operand", "fp16", "bf16", "int8") else "right"
        )
    before = {site.name: site for site in certificate.before}
    for site in certificate.sites:
        table.add_row(*_row(before.get(site.name, site), site))
    wide(console, _WIDTH).print(table, highlight=False)
    verdict, worst = certificate.verdict, certificate.verdict_before
    precisions = ", ".join(certificate.precisions)
    was = f" (before the repair: {worst})" if certificate.before and worst != verdict else ""
    console.print(f"verdict      [{_STYLE[verdict]}]{verdict.upper()}[/] in {precisions}{was}", highlight=False)
    console.print(f"based on     {_evidence(certificate)}; {certificate.images} images", highlight=False)
    for reason in _reasons(certificate)[:5]:
        console.print(f"             {reason}", markup=False, highlight=False)
    if certificate.checks is not None:
        console.print(f"checked      FP32 logits before and after are bit-identical on {certificate.checks.images} images")
    if certificate.islands.sites:
        cost = certificate.islands
        console.print(
            f"islands      {cost.sites} XNorms in FP32: {cost.casts} Casts, {cost.values_per_image:,} values per image cross"
        )


def _row(before: SiteCertificate, site: SiteCertificate) -> list[str]:
    low = "-" if before.sum_sq_min is None else f"{before.sum_sq_min:.2g}"
    verdicts = []
    for name in ("fp16", "bf16", "int8"):
        old, new = before.verdicts[name].verdict, site.verdicts[name].verdict
        text = f"[{_STYLE[new]}]{new}[/]"
        verdicts.append(text if old == new else f"[{_STYLE[old]}]{old}[/] > {text}")
    return [
        site.name.rsplit("/", 1)[0],
        site.operand,
        f"{low} .. {before.sum_sq_max:.2g}",
        "-" if before.bound_sum_sq is None else f"{before.bound_sum_sq:.2g}",
        f"{before.fp16_headroom_bits:.1f}",
        "-" if before.fp16_floor_bits is None else f"{before.fp16_floor_bits:.1f}",
        *verdicts,
        "FP32" if site.island else str(site.fold_exponent) if site.fold else "",
    ]


def _evidence(certificate: XNormCertificate) -> str:
    certified = sum(site.bound_sum_sq is not None for site in certificate.sites)
    return f"certified maxima at {certified} of {len(certificate.sites)} XNorms, observed ones elsewhere; observed minima"


def _reasons(certificate: XNormCertificate) -> list[str]:
    return [
        f"{site.name}, {name}: {site.verdicts[name].verdict}: {site.verdicts[name].reason}"
        for site in certificate.sites
        for name in certificate.precisions
        if site.verdicts[name].verdict != "stable"
    ]
