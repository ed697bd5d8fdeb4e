"""`ufovit certify`: check that FP16, BF16 and INT8 can represent every XNorm of a graph, and repair it if not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from calib.artifact import write_artifact
from calib.errors import InputError
from calib.files import write_bytes
from edge.cli.console import TerminalProgress, terminal_progress
from edge.cli.outputs import check_outputs
from edge.option_bounds import EMULATED_IMAGES, check_bounds
from edge.pipeline.network_options import DEFAULT_INPUT, InputOptions
from edge.pipeline.request_checks import check_counts

if TYPE_CHECKING:
    from onnx import ModelProto

    from edge.pipeline.certify_inputs import CertifyInputs
    from edge.stability.certificate import SiteCertificate, XNormCertificate
    from edge.stability.certify import Certification, CertifyConfig

_STYLE = {"stable": "green", "at risk": "yellow", "unstable": "bold red"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """How a graph is certified. Raises UsageError for numbers out of range.

    Attributes:
        data: Images to measure on: a folder, an image, an IDX file. Default: the shipped ones
        images: Number of images, 1 to 1,000,000. Default: as many as take about half a minute, 512 at most
        precision: Precision that the verdict covers, repeatable. Default: fp16 bf16 int8
        repair: Fold powers of two into the weights where needed; write the graph here
        out: Write the certificate here, as JSON
        emulate: Run this many images, 0 to 64, with every FP16 rounding emulated, and compare with FP32
    """

    data: Path | None = None
    images: int | None = None
    precision: tuple[str, ...] = ()
    repair: Path | None = None
    out: Path | None = None
    emulate: int = 0
    input: Annotated[InputOptions, Parameter(name="*")] = DEFAULT_INPUT

    def __post_init__(self) -> None:
        check_counts(images=self.images)
        check_bounds("--emulate", self.emulate, EMULATED_IMAGES)


_DEFAULT = CertifyOptions()


def certify(source: Path, /, *, options: CertifyOptions = _DEFAULT) -> int:
    """Certify every XNorm: its range on images, its bound for any input, and whether 16 bits can represent it.

    Exit codes: 0 stable or at risk, 1 unstable (after the repair, if --repair is given), 2 bad input, 4 something this
    machine lacks.

    Args:
        source: An ONNX file (FP32), or a build folder
    """
    from edge.images.labelled_images import data_digest
    from edge.pipeline.build_inputs import say_notes
    from edge.pipeline.certify_inputs import resolve
    from edge.runtime.ort_runner import tapped_batch
    from edge.stability.certify import certify_graph

    progress = terminal_progress()
    check_outputs(options.repair, options.out, inputs=(source, options.data))
    inputs = resolve(source, options.data, options.images, options.input)
    say_notes(inputs.images, progress)
    for line in inputs.rewritten:
        progress.say(f"import       {line}")
    with progress.task(f"{len(inputs.images)} images") as advance:
        done = certify_graph(
            inputs.model,
            inputs.images.batches(inputs.preprocess, inputs.batch or tapped_batch(inputs.preprocess.image_size)),
            data_sha256=data_digest(inputs.images, inputs.preprocess),
            onnx_sha256=inputs.sha256,
            config=_config(source, options, inputs),
            progress=lambda count: advance(count / len(inputs.images)),
        )
    _print_certificate(progress, done.certificate)
    _write(options, done, progress)
    if options.emulate:
        (batch,) = inputs.images.take(options.emulate).batches(inputs.preprocess, options.emulate)
        progress.say(f"FP16 emulated, as it is: {_emulated(inputs.model, inputs.model, None, batch)}")
        if options.repair is not None:
            progress.say(f"FP16 emulated, repaired: {_emulated(inputs.model, done.model, done.certificate, batch)}")
    return 1 if done.certificate.verdict == "unstable" else 0


def _config(source: Path, options: CertifyOptions, inputs: CertifyInputs) -> CertifyConfig:
    from edge.stability.certify import CertifyConfig

    config = CertifyConfig(repair=options.repair is not None, where=source)
    if options.precision:
        config = replace(config, precisions=options.precision)
    if inputs.info is not None:
        network = inputs.info.config
        config = replace(config, expected_sites=network.xnorm_sites, kv_axis=network.xnorm_kv_axis)
    return config


def _write(options: CertifyOptions, done: Certification, progress: TerminalProgress) -> None:
    """Write the files that the options name."""
    from calib.qdq_writer import serialize

    verdict, repair = done.certificate.verdict, options.repair
    if repair is not None and verdict == "unstable":
        progress.say(f"graph        not written: {repair} would be unstable too")
    elif repair is not None:
        write_bytes(repair, serialize(done.model))
        progress.say(f"graph        {repair}")
    elif verdict != "stable":
        progress.say("next         the same command with --repair folded.onnx")
    if options.out is not None:
        write_artifact(options.out, done.certificate)
        progress.say(f"certificate  {options.out}")


def _emulated(reference: ModelProto, graph: ModelProto, certificate: XNormCertificate | None, images: Any) -> str:
    """FP16 compared with FP32 as a sentence; for a graph that cannot be converted to FP16, the reason."""
    from edge.stability.fp16_network import emulated_agreement

    try:
        return str(emulated_agreement(reference, graph, certificate, images))
    except InputError as error:
        return " ".join(str(error).split())


def _print_certificate(progress: TerminalProgress, certificate: XNormCertificate) -> None:
    """A row per XNorm, then the verdict."""
    from edge.report.certificate_text import certified_count, unjudged_text

    columns = ("XNorm", "operand", "sum a² observed", "for any input", "headroom", "floor", "fp16", "bf16", "int8", "2^-p")
    before = {site.name: site for site in certificate.before}
    rows = [_row(before.get(site.name, site), site) for site in certificate.sites]
    progress.table(columns, rows, left=("XNorm", "operand", "fp16", "bf16", "int8"))
    verdict, worst = certificate.verdict, certificate.verdict_before
    precisions = ", ".join(certificate.precisions)
    was = f" (before the repair: {worst})" if certificate.before and worst != verdict else ""
    progress.console.print(f"verdict      [{_STYLE[verdict]}]{verdict.upper()}[/] in {precisions}{was}", highlight=False)
    certified = f"certified maxima at {certified_count(certificate.sites)} of {len(certificate.sites)} XNorms"
    progress.say(f"based on     {certified}, observed ones elsewhere; observed minima; {certificate.images} images")
    if certificate.unjudged:
        norms = len(certificate.sites) + len(certificate.unjudged)
        progress.say(f"judged       {len(certificate.sites)} of {norms} norms; {unjudged_text(certificate)}")
    reasons = [
        f"{site.name}, {name}: {site.verdicts[name].verdict}: {site.verdicts[name].reason}"
        for site in certificate.sites
        for name in certificate.precisions
        if site.verdicts[name].verdict != "stable"
    ]
    for reason in reasons[:5]:
        progress.say(f"             {reason}")
    if certificate.checks is not None:
        progress.say(f"checked      FP32 logits before and after are bit-identical on {certificate.checks.images} images")
    cost = certificate.islands
    if cost.sites:
        progress.say(
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
        escape(site.name.rsplit("/", 1)[0]),
        site.operand,
        f"{low} .. {before.sum_sq_max:.2g}",
        "-" if before.bound_sum_sq is None else f"{before.bound_sum_sq:.2g}",
        f"{before.fp16_headroom_bits:.1f}",
        "-" if before.fp16_floor_bits is None else f"{before.fp16_floor_bits:.1f}",
        *verdicts,
        "FP32" if site.island else str(site.fold_exponent) if site.fold else "",
    ]
