"""A build folder as the gate sees it: verified first, then its figures, each as its artifact states it.

What `drift.json` states is held against the logits that it was computed from: a statement that they do not bear out is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calib.artifact import read_artifact
from calib.files import canonical_json, sha256_bytes
from edge.drift.compare import DriftReport
from edge.drift.recompute_check import check_stated
from edge.gate.baseline import Identity, Margin, Measured, Origin, XNormMargins, pack_answers
from edge.gate.scale_changes import read_scales
from edge.stability.certificate import XNormCertificate, read_certificate
from edge.tasks.classification.logit_metrics import Floats, Int64
from edge.tasks.classification.logits import answers, read_logits
from engines.build_folder.file_names import DRIFT, LOGITS
from engines.build_folder.manifest import EngineManifest, read_manifest
from engines.build_folder.safe_files import REMAKE
from engines.build_folder.verify import verify_folder
from engines.hardware import versions

_DISTRIBUTION = "ufovit-edge"


@dataclass(frozen=True)
class Build:
    """A verified build.

    Attributes:
        folder: where it lies.
        identity, origin, measured: as a baseline would record them; latency is not in a folder.
        drift: its own report.
        reference, engine: logits (n, classes); labels (n,), None without.
        fallbacks: layers that do not run in the build's precision, by name.
    """

    folder: Path
    identity: Identity
    origin: Origin
    measured: Measured
    drift: DriftReport
    reference: Floats
    engine: Floats
    labels: Int64 | None
    fallbacks: tuple[str, ...]


def read_build(folder: Path) -> Build:
    """Verify a build folder and read its figures. Raises InputError for one that is not what was recorded, or incomplete."""
    verify_folder(folder)
    manifest = read_manifest(folder)
    drift = read_artifact(folder / DRIFT, DriftReport, remake=REMAKE)
    logits = read_logits(folder / LOGITS)
    reference, engine, labels = logits.reference, logits.engine, logits.labels
    classes = len(manifest.labels)
    check_stated(folder, drift, logits, classes, spare_not_finite=True)  # it fails as a row
    certificate = read_certificate(folder / manifest.xnorm.file) if manifest.xnorm else None
    measured = Measured(
        top1=drift.top1_engine,
        agreement=drift.agreement,
        sqnr_db=drift.sqnr_db,
        share=manifest.receipt.actual.get(manifest.precision, 0.0),
        engine_bytes=(folder / manifest.engine.file).stat().st_size,
        scales=read_scales(folder, certificate),
        xnorm=_margins(certificate),
        latency=None,
        reference_answers=pack_answers(answers(reference), classes),
        engine_answers=pack_answers(answers(engine), classes),
    )
    fallbacks = tuple(fallback.layer for fallback in manifest.receipt.fallbacks)
    identity, origin = _identity(manifest, drift), _origin(manifest, drift)
    return Build(folder, identity, origin, measured, drift, reference, engine, labels, fallbacks)


def _identity(manifest: EngineManifest, drift: DriftReport) -> Identity:
    return Identity(
        model=manifest.model,
        precision=manifest.precision,
        target=manifest.target,
        random_weights=manifest.random_weights,
        checkpoint_sha256=manifest.checkpoint.sha256 if manifest.checkpoint else None,
        labels_sha256=sha256_bytes(canonical_json(list(manifest.labels))),
        classes=len(manifest.labels),
        data_sha256=drift.data_sha256,
        images=drift.images,
        preprocess_sha256=drift.preprocess_sha256,
        judged=drift.engine.file,
    )


def _origin(manifest: EngineManifest, drift: DriftReport) -> Origin:
    return Origin(
        created=manifest.created,
        toolkit=_toolkit(),
        backend=manifest.engine.backend,
        backend_version=manifest.engine.backend_version,
        engine_sha256=manifest.engine.sha256,
        onnx_sha256=manifest.onnx.sha256,
        calibration_data_sha256=manifest.calibration.data_sha256 if manifest.calibration else None,
        verdict=drift.verdict,
    )


def _margins(certificate: XNormCertificate | None) -> XNormMargins | None:
    if certificate is None:
        return None
    sites = {site.name: Margin(site.fp16_headroom_bits, site.fp16_floor_bits) for site in certificate.sites}
    return XNormMargins(certificate.verdict, sites)


def _toolkit() -> str:
    return versions(_DISTRIBUTION)[_DISTRIBUTION] or "unknown"  # run from a checkout that was never installed
