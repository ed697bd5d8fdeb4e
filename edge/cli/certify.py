"""`ufovit certify`: can 16 bits hold every XNorm of a graph?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from onnx import ModelProto
    from rich.console import Console

    from edge.stability.certificate import SiteCertificate, XNormCertificate

_WIDTH = 160
_STYLE = {"stable": "green", "at risk": "yellow", "unstable": "bold red"}


def certify(  # noqa: PLR0913, PLR0917  # one parameter per option of the command
    source: Annotated[Path, typer.Argument(help="An ONNX file (FP32), or a build folder")],
    data: Annotated[
        Path | None, typer.Option(help="Images to measure on: a folder, an image, an IDX file. Default: the shipped ones")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="How many. Default: about half a minute's worth, 512 at most", show_default=False)
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="What the verdict is over, repeatable. Default: fp16 bf16 int8", show_default=False)
    ] = None,
    repair: Annotated[
        Path | None, typer.Option(help="Fold powers of two into the weights where needed; write the graph here")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the certificate here, as JSON")] = None,
    emulate: Annotated[
        int, typer.Option(min=0, help="Run this many images with every FP16 rounding emulated, and compare with FP32")
    ] = 0,
    mean: Annotated[str | None, typer.Option(help="R,G,B on the [0, 1] scale, for a graph that does not say")] = None,
    std: Annotated[str | None, typer.Option(help="R,G,B likewise")] = None,
) -> int:
    """Certify every XNorm: what it reaches on images, what it can reach on any input, and whether 16 bits hold it.

    Exit codes: 0 stable or at risk, 1 unstable (after the repair, where one is asked for), 2 bad input, 4 something this
    machine lacks.
    """
    from rich.console import Console

    from calib.artifact import write_artifact
    from calib.files import write_bytes
    from calib.qdq_writer import serialize
    from edge.cli.console import TerminalProgress
    from edge.images.graph_input import parse_normalisation
    from edge.images.labelled_images import data_digest
    from edge.pipeline.certify_request import CertifyRequest, resolve
    from edge.runtime.ort_runner import tapped_batch
    from edge.stability.certify import CertifyConfig, certify_graph

    console = Console(soft_wrap=True)
    progress = TerminalProgress(console)
    request = CertifyRequest(source, data, images, parse_normalisation(mean, std))
    config = CertifyConfig(repair=repair is not None)
    if precision:
        config = CertifyConfig(tuple(precision), config.repair)
    inputs = resolve(request)
    if inputs.info is not None:
        network = inputs.info.config
        config = CertifyConfig(config.precisions, config.repair, network.xnorm_sites, network.xnorm_kv_axis)
    with progress.task(f"{len(inputs.images)} images") as advance:
        done = certify_graph(
            inputs.model,
            inputs.images.batches(inputs.preprocess, tapped_batch(inputs.preprocess.image_size)),
            data_sha256=data_digest(inputs.images, inputs.preprocess),
            onnx_sha256=inputs.sha256,
            config=config,
            progress=lambda count: advance(count / len(inputs.images)),
        )
    print_certificate(console, done.certificate)
    if repair is not None and done.certificate.verdict == "unstable":
        progress.say(f"graph        not written: {repair} would be unstable too")
    elif repair is not None:
        write_bytes(repair, serialize(done.model))
        progress.say(f"graph        {repair}")
    elif done.certificate.verdict != "stable":
        progress.say(f"next         ufovit certify {source} --repair folded.onnx")
    if out is not None:
        write_artifact(out, done.certificate)
        progress.say(f"certificate  {out}")
    if emulate:
        (batch,) = inputs.images.take(emulate).batches(inputs.preprocess, emulate)
        progress.say(f"FP16 emulated, as it is: {_emulated(inputs.model, inputs.model, None, batch)}")
        if repair is not None:
            progress.say(f"FP16 emulated, repaired: {_emulated(inputs.model, done.model, done.certificate, batch)}")
    return 1 if done.certificate.verdict == "unstable" else 0


def _emulated(reference: ModelProto, graph: ModelProto, certificate: XNormCertificate | None, images: Any) -> str:
    """FP16 against FP32 in words; a graph that has no FP16 form at all is an answer too."""
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
    for column in ("XNorm", "operand", "sum a² seen", "for any input", "headroom", "floor", "fp16", "bf16", "int8", "2^-p"):
        table.add_column(
            column, overflow="fold", justify="left" if column in ("XNorm", "operand", "fp16", "bf16", "int8") else "right"
        )
    before = {site.name: site for site in certificate.before}
    for site in certificate.sites:
        table.add_row(*_row(before.get(site.name, site), site))
    wide(console, _WIDTH).print(table, highlight=False)
    verdict, worst = certificate.verdict, certificate.verdict_before
    precisions = ", ".join(certificate.precisions)
    was = f" (it was {worst})" if certificate.before and worst != verdict else ""
    console.print(f"verdict      [{_STYLE[verdict]}]{verdict.upper()}[/] in {precisions}{was}", highlight=False)
    console.print(f"rests on     {_rests_on(certificate)}; {certificate.images} images", highlight=False)
    for reason in _reasons(certificate)[:5]:
        console.print(f"             {reason}", markup=False, highlight=False)
    if certificate.checks is not None:
        console.print(
            f"checked      FP32 logits before and after are the same to the last bit on {certificate.checks.images} images"
        )
    if certificate.islands.sites:
        cost = certificate.islands
        console.print(
            f"islands      {cost.sites} XNorms in FP32: {cost.casts} Casts, {cost.values_per_image:,} values an image cross"
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


def _rests_on(certificate: XNormCertificate) -> str:
    certified = sum(site.bound_sum_sq is not None for site in certificate.sites)
    return f"certified maxima at {certified} of {len(certificate.sites)} XNorms, observed ones elsewhere; observed minima"


def _reasons(certificate: XNormCertificate) -> list[str]:
    return [
        f"{site.name}, {name}: {site.verdicts[name].verdict}: {site.verdicts[name].reason}"
        for site in certificate.sites
        for name in certificate.precisions
        if site.verdicts[name].verdict != "stable"
    ]
