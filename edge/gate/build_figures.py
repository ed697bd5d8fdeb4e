"""Read the figures that the gate compares from a verified build folder."""

from dataclasses import dataclass
from pathlib import Path

from edge.drift.drift_report import DRIFT_ARTIFACT, DriftReport
from edge.drift.recompute_check import check_stated
from edge.gate.baseline import BaselineFigures, Identity, Margin, NetworkMargins, Origin, StepFigures, XNormMargins
from edge.gate.scale_changes import read_scales
from edge.stability.certificate import CERTIFICATE_ARTIFACT
from edge.stability.kind_summaries import summarize_kinds
from edge.stability.network_certificate import NETWORK_ARTIFACT, NetworkCertificate
from edge.tasks.registry import read_answers, task_of
from edge.tasks.task import Sides, Task
from engines.build_folder.folder import BuildFolder
from engines.build_folder.verify import verify_folder
from engines.hardware import versions
from engines.plan_kernels import PlanKernels


@dataclass(frozen=True)
class BuildFigures:
    """A verified build: what a baseline would record of it (a folder holds no latency), its drift and its answers.

    `fallbacks` names the layers that do not run in the build's precision.
    """

    folder: Path
    identity: Identity
    origin: Origin
    measured: BaselineFigures
    drift: DriftReport
    task: Task
    sides: Sides
    fallbacks: tuple[str, ...]


def read_build(folder: BuildFolder) -> BuildFigures:
    """Verify a build folder and read its figures. Raises ArtifactError for one that is altered or incomplete."""
    manifest, drift = folder.manifest, folder.read(DRIFT_ARTIFACT)
    task = task_of(manifest)
    sides = read_answers(folder, task)
    check_stated(folder.path, task, drift, sides, spare_not_finite=True)  # fails as a row of the gate
    certificate = folder.read(CERTIFICATE_ARTIFACT) if manifest.xnorm else None
    scales, network = read_scales(folder, certificate), folder.find(NETWORK_ARTIFACT)
    engine_bytes = len(folder.engine())
    verify_folder(folder)
    sites = certificate.sites if certificate else ()
    margins = {site.name: Margin(site.fp16_headroom_bits, site.fp16_floor_bits) for site in sites}
    measured = BaselineFigures(
        answers=task.record(drift.comparison, sides),
        share=manifest.receipt.actual.get(manifest.precision, 0.0),
        engine_bytes=engine_bytes,
        scales=scales,
        xnorm=XNormMargins(certificate.verdict, margins) if certificate else None,
        latency=None,
        steps=_steps(manifest.receipt.plan),
        network=network_margins(network) if network else None,
    )
    identity = Identity(
        model=manifest.model,
        precision=manifest.precision,
        target=manifest.target,
        task=manifest.task,
        random_weights=manifest.random_weights,
        checkpoint_sha256=manifest.checkpoint.sha256 if manifest.checkpoint else None,
        meaning=task.identity(),
        data_sha256=drift.data_sha256,
        images=drift.images,
        preprocess_sha256=drift.preprocess_sha256,
        judged=drift.engine.file,
    )
    (toolkit,) = versions("ufovit-edge").values()
    origin = Origin(
        created=manifest.created,
        toolkit=toolkit or "unknown",  # run from a checkout that was never installed
        backend=manifest.engine.backend,
        backend_version=manifest.engine.backend_version,
        engine_sha256=manifest.engine.sha256,
        onnx_sha256=manifest.onnx.sha256,
        calibration_data_sha256=manifest.calibration.data_sha256 if manifest.calibration else None,
        verdict=drift.verdict,
    )
    fallbacks = tuple(fallback.layer for fallback in manifest.receipt.fallbacks)
    return BuildFigures(folder.path, identity, origin, measured, drift, task, sides, fallbacks)


def _steps(plan: PlanKernels | None) -> StepFigures | None:
    if plan is None:
        return None
    return StepFigures(plan.total.steps, plan.steps_of("reformat"), plan.steps_of("pad"), plan.total.moved_bytes)


def network_margins(certificate: NetworkCertificate) -> NetworkMargins:
    """What a baseline records of the certificate of the whole network."""
    kinds = {kind.kind: kind.headroom_bits for kind in summarize_kinds(certificate) if kind.kind != "xnorm"}
    emulated = certificate.emulated.after or certificate.emulated.before
    return NetworkMargins(
        verdict=certificate.verdict,
        headroom_bits={kind: bits for kind, bits in kinds.items() if bits is not None},
        unjudged=len(certificate.unjudged),
        islands=certificate.islands.sites,
        emulated_sqnr_db=emulated.sqnr_db if emulated else None,
    )
