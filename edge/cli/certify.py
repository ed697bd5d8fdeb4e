"""`ufovit certify`: check that FP16 can represent every tensor of a network, and repair it if not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.markup import escape

from calib.artifact import write_artifact
from calib.errors import UsageError
from calib.files import write_bytes
from edge.cli.console import TerminalProgress, terminal_progress
from edge.cli.outputs import check_outputs
from edge.option_bounds import EMULATED_IMAGES, check_bounds
from edge.pipeline.network_options import DEFAULT_INPUT, InputOptions
from edge.pipeline.request_checks import ISLANDS, check_counts, check_islands
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.folder import BuildFolder
from engines.targets import TARGETS

if TYPE_CHECKING:
    from edge.pipeline.certify_inputs import CertifyInputs
    from edge.stability.certificate import SiteCertificate
    from edge.stability.certify import CertifyConfig
    from edge.stability.network_certificate import NetworkCertificate
    from edge.stability.network_certification import NetworkCertification

_STYLE = {"stable": "green", "at risk": "yellow", "unstable": "bold red"}
_LISTED = 8


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """How a graph is certified. Raises UsageError for numbers out of range and an unknown target.

    Attributes:
        data: Images to measure on: a folder, an image, an IDX file. Default: the shipped ones
        images: Number of images, 1 to 1,000,000. Default: as many as take about half a minute, 512 at most
        precision: Precision that the verdict covers, repeatable. Default: fp16 bf16 int8
        target: Target whose table tells what it computes in FP32 inside FP16 operators. Default: that of a build folder; else
            none, and what only some targets widen is at risk
        repair: Scale by powers of two, or keep in FP32, what FP16 cannot hold; write the graph here
        islands: Places that --repair leaves to FP32 where scaling does not help: unstable, or at-risk ones too, for more Casts
        out: Write the certificate here, as JSON
        emulate: Run this many images, 0 to 64, with every FP16 rounding emulated, and compare with FP32. Default: 16
    """

    data: Path | None = None
    images: int | None = None
    precision: tuple[str, ...] = ()
    target: str | None = None
    repair: Path | None = None
    islands: str = "unstable"
    out: Path | None = None
    emulate: int = 16
    input: Annotated[InputOptions, Parameter(name="*")] = DEFAULT_INPUT

    def __post_init__(self) -> None:
        check_counts(images=self.images)
        check_islands(self.islands)
        check_bounds("--emulate", self.emulate, EMULATED_IMAGES)
        if self.target is not None and self.target not in TARGETS:
            raise UsageError("unknown target", where="--target", found=self.target, allowed=", ".join(TARGETS))


_DEFAULT = CertifyOptions()


def certify(source: Path, /, *, options: CertifyOptions = _DEFAULT) -> int:
    """Certify every place where 16 bits can fail: its range on images, its bound for any input, and whether FP16 can hold it.

    Exit codes: 0 stable or at risk, 1 unstable (after the repair, if --repair is given), 2 bad input, 4 something this
    machine lacks.

    Args:
        source: An ONNX file (FP32), or a build folder
    """
    from edge.images.labelled_images import data_digest
    from edge.pipeline.build_inputs import say_notes
    from edge.pipeline.certify_inputs import resolve
    from edge.runtime.ort_runner import tapped_batch
    from edge.stability.network_certification import certify_network

    progress = terminal_progress()
    check_outputs(options.repair, options.out, inputs=(source, options.data))
    inputs = resolve(source, options.data, options.images, options.input)
    say_notes(inputs.images, progress)
    for line in inputs.rewritten:
        progress.say(f"import       {line}")
    preprocess = inputs.preprocess
    with progress.task(f"{len(inputs.images)} images") as advance:
        done = certify_network(
            inputs.model,
            lambda: inputs.images.batches(preprocess, inputs.batch or tapped_batch(preprocess.image_size)),
            interval=preprocess.interval(),
            data_sha256=data_digest(inputs.images, preprocess),
            onnx_sha256=inputs.sha256,
            config=_config(source, options, inputs),
            progress=lambda count: advance(0.8 * count / len(inputs.images)),
        )
    _print_certificate(progress, done.certificate)
    _write(options, done, progress)
    return 1 if done.certificate.verdict == "unstable" else 0


def _config(source: Path, options: CertifyOptions, inputs: CertifyInputs) -> CertifyConfig:
    from edge.stability.certify import CertifyConfig

    target = options.target
    if target is None and (source / MANIFEST).is_file():
        target = BuildFolder(source).manifest.target
    backend = TARGETS[target].backend if target in TARGETS else None
    config = CertifyConfig(
        repair=options.repair is not None,
        where=source,
        backend=backend,
        emulated_images=options.emulate,
        islands=ISLANDS[options.islands],
    )
    if options.precision:
        config = replace(config, precisions=options.precision)
    if inputs.info is not None:
        network = inputs.info.config
        config = replace(config, expected_sites=network.xnorm_sites, kv_axis=network.xnorm_kv_axis)
    return config


def _write(options: CertifyOptions, done: NetworkCertification, progress: TerminalProgress) -> None:
    """Write the files that the options name."""
    from calib.qdq_writer import serialize

    verdict, repair = done.certificate.verdict, options.repair
    if repair is not None and verdict == "unstable":
        progress.say(f"graph        not written: {repair} would be unstable too")
    elif repair is not None:
        write_bytes(repair, serialize(done.model))
        progress.say(f"graph        {repair}")
        if verdict == "at risk" and options.islands == "unstable":
            progress.say("next         --islands at-risk computes in FP32 what is left at risk")
    elif verdict != "stable":
        progress.say("next         the same command with --repair repaired.onnx")
    if options.out is not None:
        write_artifact(options.out, done.certificate)
        progress.say(f"certificate  {options.out}")


def _print_certificate(progress: TerminalProgress, certificate: NetworkCertificate) -> None:
    """A row per kind of site, the worst sites by name, what the emulated network gives, then the verdict."""
    _print_kinds(progress, certificate)
    changed = [site for site in certificate.xnorms if site.fold or site.island or site.verdict != "stable"]
    if changed:
        columns = ("XNorm", "operand", "sum a² observed", "for any input", "headroom", "floor", "fp16", "bf16", "int8", "2^-p")
        progress.table(columns, map(_row, changed), left=("XNorm", "operand", "fp16", "bf16", "int8"))
    _print_reasons(progress, certificate)
    networks = certificate.emulated
    if networks.before is not None:
        progress.say(f"FP16 emulated, as it is: {networks.before}")
    if networks.after is not None:
        progress.say(f"FP16 emulated, repaired: {networks.after}")
    verdict, worst = certificate.verdict, certificate.verdict_before
    precisions = ", ".join(certificate.precisions)
    was = f" (before the repair: {worst})" if certificate.checks is not None and worst != verdict else ""
    count = len(certificate.unjudged)
    partly = f" in what is judged; {count} place{'s' * (count != 1)} not judged" if count else ""
    progress.console.print(
        f"verdict      [{_STYLE[verdict]}]{verdict.upper()}[/]{partly} in {precisions}{was}", highlight=False
    )
    for place in certificate.unjudged[:_LISTED]:
        progress.say(f"not judged   {place.name}: {place.reason}")
    _print_basis(progress, certificate)


def _print_kinds(progress: TerminalProgress, certificate: NetworkCertificate) -> None:
    """A row per kind of site."""
    from edge.stability.kind_summaries import summarize_kinds

    rows = []
    for kind in summarize_kinds(certificate):
        old, new = (f"[{_STYLE[verdict]}]{verdict}[/]" for verdict in (kind.verdict_before, kind.verdict))
        rows.append(
            [
                kind.kind,
                str(kind.count),
                new if old == new else f"{old} > {new}",
                "-" if kind.headroom_bits is None else f"{kind.headroom_bits:.1f}",
                f"{kind.certified} of {kind.count}",
                str(kind.repaired) if kind.repaired else "",
            ]
        )
    columns = ("site", "count", "worst", "least headroom, bits", "proven for any input", "repaired")
    progress.table(columns, rows, left=("site", "worst"))


def _print_reasons(progress: TerminalProgress, certificate: NetworkCertificate) -> None:
    """The worst sites, and what was repaired, by name."""
    from edge.stability.verdict import STABILITIES

    reasons = [
        (judged.verdict, f"{site.kind} {site.name}, {name}: {judged.verdict}: {judged.reason}")
        for site in certificate.sites
        for name, judged in site.verdicts.items()
        if name in certificate.precisions and judged.verdict != "stable"
    ]
    reasons.sort(key=lambda item: -STABILITIES.index(item[0]))
    for _, reason in reasons[:_LISTED]:
        progress.say(f"             {reason}")
    if len(reasons) > _LISTED:
        progress.say(f"             and {len(reasons) - _LISTED} more")
    repairs = [site for site in certificate.sites if site.repair.kind != "none" and site.kind != "xnorm"]
    for site in repairs[:_LISTED]:
        power = f" by 2^{-site.repair.exponent}" if site.repair.exponent else ""
        progress.say(f"repaired     {site.kind} {site.name}: {site.repair.kind}{power}")


def _print_basis(progress: TerminalProgress, certificate: NetworkCertificate) -> None:
    """What the verdict rests on, what was checked, what the islands cost."""
    coverage = certificate.coverage
    share = f"{coverage.certified} of {coverage.stored} tensors"
    progress.say(f"based on     bounds that FP16 holds, for every input, at {share}; {certificate.images} images elsewhere")
    table = f"{certificate.backend or 'no target'}, {certificate.precisions_source}"
    progress.say(f"             what a target computes in FP32 inside FP16 operators: {table}")
    if certificate.checks is not None:
        progress.say(f"checked      FP32 outputs before and after are bit-identical on {certificate.checks.images} images")
    cost = certificate.islands
    if cost.sites:
        crossing = f"{cost.casts} Casts, {cost.values_per_image:,} values per image cross"
        progress.say(f"islands      {cost.sites} sites in FP32: {crossing}")


def _row(site: SiteCertificate) -> list[str]:
    low = "-" if site.sum_sq_min is None else f"{site.sum_sq_min:.2g}"
    return [
        escape(site.name.rsplit("/", 1)[0]),
        site.operand,
        f"{low} .. {site.sum_sq_max:.2g}",
        "-" if site.bound_sum_sq is None else f"{site.bound_sum_sq:.2g}",
        f"{site.fp16_headroom_bits:.1f}",
        "-" if site.fp16_floor_bits is None else f"{site.fp16_floor_bits:.1f}",
        *(f"[{_STYLE[site.verdicts[name].verdict]}]{site.verdicts[name].verdict}[/]" for name in ("fp16", "bf16", "int8")),
        "FP32" if site.island else str(site.fold_exponent) if site.fold else "",
    ]
