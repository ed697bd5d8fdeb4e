"""The result of a build as a table on the terminal: read from the artifacts, so that a reused build prints the same."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calib.calibration_table import TABLE_ARTIFACT
from calib.placement_record import Placement
from edge.attribution.attribution_record import ATTRIBUTION_ARTIFACT, Attribution
from edge.cli.console import TerminalProgress
from edge.drift.drift_report import DRIFT_ARTIFACT, DriftReport
from edge.onnx_import.import_record import IMPORT_ARTIFACT
from edge.pipeline.workspace import BuildOutcome
from edge.report.certificate_text import headline, island_cost, without_certificate
from edge.report.network_words import headline as network_headline
from edge.stability.certificate import CERTIFICATE_ARTIFACT
from edge.stability.network_certificate import NETWORK_ARTIFACT
from edge.tasks.registry import task_of
from engines.build_folder.file_names import CALIBRATION, REPORT, SPEED
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest
from engines.speed_estimate import MEASURED_SPEED_ARTIFACT, SPEED_ARTIFACT

_STYLE = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
_LISTED = 5


def conclude(progress: TerminalProgress, outcome: BuildOutcome) -> int:
    """Print the result of a build; returns the exit code of its verdict."""
    print_summary(progress.console, outcome.folder)
    return {"pass": 0, "fail": 1, "inconclusive": 3}[outcome.verdict]


def print_summary(console: Console, folder: Path) -> None:
    """Print the verdict, if there is one, and its figures."""
    build = BuildFolder(folder)
    manifest, drift, attribution = build.manifest, build.find(DRIFT_ARTIFACT), build.find(ATTRIBUTION_ARTIFACT)
    imported, network = build.find(IMPORT_ARTIFACT), build.find(NETWORK_ARTIFACT)
    rows = _drift_rows(drift, manifest) if drift is not None else {}
    rows |= {"engine": escape(_engine(manifest)), "receipt": escape(_receipt(manifest))}
    if manifest.xnorm is not None:
        certificate = build.read(CERTIFICATE_ARTIFACT)
        islands = f"\n{island_cost(certificate)}" if certificate.islands.sites else ""
        rows["xnorm"] = escape(headline(certificate) + islands)
    elif imported is not None and network is None and manifest.precision != "fp32":
        rows["xnorm"] = escape(without_certificate(imported))
    if network is not None:
        rows["certificate"] = escape(network_headline(network))
    calibration = build.find(TABLE_ARTIFACT)
    if calibration is not None and calibration.placement is not None:
        rows["placement"] = escape(_placement(calibration.placement))
    speed = _speed(build)
    if speed:
        rows["speed"] = escape(speed)
    if attribution is not None:
        rows["layers"] = escape(_layers(attribution))
    if manifest.random_weights:
        rows = {"weights": "[bold red]RANDOM: no figure here says anything about accuracy[/]", **rows}
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table, highlight=False)
    if build.has(REPORT):  # not on a device, which lacks the libraries that render it
        console.print(f"report   {folder / REPORT}", markup=False, highlight=False)  # never wrapped


def _drift_rows(drift: DriftReport, manifest: EngineManifest) -> dict[str, str]:
    rows = {"verdict": f"[{_STYLE[drift.verdict]}]{drift.verdict.upper()}[/] {escape(drift.reason)}"}
    rows |= {name: escape(text) for name, text in task_of(manifest).summary(drift, manifest.precision).items()}
    rows["judged"] = escape(drift.engine.ran_on)
    return rows


def _placement(placement: Placement) -> str:
    """What stays in float and why, the layers that leave INT8 first at the head."""
    reasons = placement.reasons()
    lines = [f"in float: {name}: {reason}" for name, reason in list(reasons.items())[:_LISTED]]
    more = [f"and {len(reasons) - _LISTED} more: ufovit inspect {CALIBRATION}"] if len(reasons) > _LISTED else []
    return "\n".join([str(placement), *lines, *more])


def _layers(attribution: Attribution) -> str:
    lines = [attribution.sentence]
    for trial in attribution.costliest:
        names = "all of these" if trial.isolated_db is None else ", ".join(trial.layers)
        caveat = "" if trial.confirmed else ", within its uncertainty"
        lines.append(f"in {attribution.float_form}: {names}: {trial.gain_db:+.1f} ± {trial.uncertainty_db:.1f} dB{caveat}")
    return "\n".join(lines)


def _speed(build: BuildFolder) -> str:
    """How fast INT8 is beside FP16, measured or expected; "" where neither is known."""
    measured, estimate = build.find(MEASURED_SPEED_ARTIFACT), build.find(SPEED_ARTIFACT)
    if measured is not None:
        return "\n".join((*measured.sentences(), f"measured on {measured.machine}"))
    if estimate is None:
        return ""
    if not estimate.targets:
        return f"INT8 beside FP16 not estimated: {estimate.reason}"
    own = estimate.targets[0]
    lines = [f"INT8 is expected to be {expected.sentence()}" for expected in own.batches]
    return "\n".join((*lines, f"estimate with the rates of a {own.machine}; other targets: ufovit inspect {SPEED}"))


def _engine(manifest: EngineManifest) -> str:
    engine = manifest.engine
    serves = ", ".join(engine.compute_capabilities)
    return f"{engine.file}, {engine.bytes / 1e6:.1f} MB, {engine.backend} {engine.backend_version}" + (
        f", compute capability {serves}" if serves else ""
    )


def _receipt(manifest: EngineManifest) -> str:
    receipt = manifest.receipt
    shares = ", ".join(f"{share:.1%} {name}" for name, share in sorted(receipt.actual.items(), key=lambda s: -s[1]))
    lines = [f"{shares} of the multiply-accumulates, read from the engine"]
    if receipt.plan is not None:
        total = receipt.plan.total
        lines.append(f"{total.steps} steps in one inference, which move {total.moved_bytes / 1e6:.1f} MB for one image")
    if manifest.precision == "int8":
        listed = receipt.fallbacks[:_LISTED]
        lines += [f"{f.layer}: {f.actual}, {f.share}: {f.reason}" for f in listed]
        if len(receipt.fallbacks) > _LISTED:
            lines.append(f"and {len(receipt.fallbacks) - _LISTED} more in the report")
    return "\n".join(lines)
