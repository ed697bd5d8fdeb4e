"""Describe the JSON and NPZ artifacts of a build, and the build folder."""

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from calib.calibration_table import CalibrationTable
from edge.drift.drift_report import DRIFT_ARTIFACT, DriftReport
from edge.drift.pictures import KeptPictures
from edge.images.golden_pair import GoldenPair
from edge.inspect.describe_certificate import kinds_listing
from edge.inspect.describe_dataclass import describe_fields, limited, value_text
from edge.inspect.describe_kernels import describe_kernels
from edge.inspect.description import Description, Listing, size_text
from edge.report.network_words import headline
from edge.stability.network_certificate import NETWORK_ARTIFACT
from edge.tasks.registry import load_task
from engines.build_folder.file_names import ARTIFACTS, DRIFT
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import CalibrationRecord, EngineManifest, FileRecord
from engines.build_folder.step_record import StepRecord
from engines.build_folder.verify import verify_folder

RANDOM_STAMP = "RANDOM WEIGHTS: nothing here says anything about accuracy"

describe_attribution = partial(describe_fields, "Drift by layer")
describe_export = partial(describe_fields, "Export record")
describe_import = partial(describe_fields, "Import record")


def describe_manifest(manifest: EngineManifest) -> Description:
    """An engine: origin, inputs and outputs, precision of its layers."""
    engine, receipt = manifest.engine, manifest.receipt
    serves = ", ".join(engine.compute_capabilities) or "no GPU: a CPU engine"
    facts = {
        "model": f"{manifest.model}, {manifest.precision}, target {manifest.target}",
        "created": manifest.created,
        "engine": f"{engine.file}, {size_text(engine.bytes)}, sha256 {engine.sha256}",
        "backend": f"{engine.backend} {engine.backend_version}",
        "compute capability": serves,
        "input": f"{manifest.input.name}: {manifest.input.dtype} {list(manifest.input.shape)}",
        "output": "; ".join(f"{port.name}: {port.dtype} {list(port.shape)}" for port in manifest.outputs),
        "labels": f"{len(manifest.labels)}: {value_text('labels', manifest.labels)}",
        "preprocess": ", ".join(f"{name} {value}" for name, value in sorted(manifest.preprocess.items()) if name != "sha256"),
        "asked for": shares_text(receipt.requested),
        "does": f"{shares_text(receipt.actual)} of the multiply-accumulates, read from the engine",
    }
    if receipt.plan is not None:
        total = receipt.plan.total
        facts["runs"] = f"{total.steps} steps in one inference, which move {size_text(total.moved_bytes)} for one image"
    facts |= {f"note {i}": note for i, note in enumerate(manifest.notes, start=1)}
    made_from: dict[str, FileRecord | CalibrationRecord | None] = {
        "checkpoint": manifest.checkpoint,
        "FP32 graph": manifest.onnx,
        "certificate": manifest.certificate,
        "XNorm certificate": manifest.xnorm,
        "folded graph": manifest.folded_onnx,
        "refined graph": manifest.refined_onnx,
        "quantized graph": manifest.qdq_onnx,
        "typed graph": manifest.typed_onnx,
        "calibration": manifest.calibration,
    }
    files = tuple((role, record.file, record.sha256) for role, record in made_from.items() if record is not None)
    listings = [Listing("Made from", ("what", "file", "sha256"), files)]
    if receipt.fallbacks:
        columns = ("layer", "asked for", "does", "share", "why")
        rows = [(f.layer, f.requested, f.actual, f.share, f.reason) for f in receipt.fallbacks]
        listings.append(limited(f"{len(rows)} layers do not run in {manifest.precision}", columns, rows))
    if receipt.plan is not None:
        listings += describe_kernels(receipt.plan)
    warnings = (RANDOM_STAMP,) if manifest.random_weights else ()
    return Description("Engine manifest", facts, tuple(listings), warnings)


def describe_table(table: CalibrationTable) -> Description:
    """calibration.json, the widest ranges first."""
    widest = dict(sorted(table.tensors.items(), key=lambda item: (-item[1].amax, item[0])))
    warnings = ("SYNTHETIC IMAGES: these ranges were not measured on real images",) if table.synthetic else ()
    described = describe_fields("Calibration table", replace(table, tensors=widest), skip=("placement",), warnings=warnings)
    amax = [scale.amax for scale in widest.values()]
    proven = sum(scale.source == "proof" for scale in widest.values())
    facts = {"amax": f"{amax[-1]:.4g} to {amax[0]:.4g}"} if amax else {}
    facts["from proof"] = f"{proven} of {len(amax)} scales: a bound for every image, not above what the images gave"
    listings = described.listings
    if table.placement is not None:
        facts["placement"] = str(table.placement)
        rows = [(node, reason) for node, reason in table.placement.reasons().items()]
        listings = (*((limited(f"Layers in float: {len(rows)}", ("layer", "reason"), rows),) if rows else ()), *listings)
    return replace(described, facts=described.facts | facts, listings=listings)


def describe_drift(drift: DriftReport) -> Description:
    """drift.json: the verdict, then its figures."""
    warnings = (RANDOM_STAMP,) if drift.random_weights else ()
    first = ("verdict", "reason", "reference", "engine", "comparison", "budget")
    described = describe_fields("Drift report", drift, skip=first, warnings=warnings)
    facts = {"verdict": f"{drift.verdict.upper()}: {drift.reason}"}
    facts |= {"judged": value_text("engine", drift.engine), "against": value_text("reference", drift.reference)}
    figures = describe_fields("", drift.comparison)
    rest = {"budget": load_task(drift.task).budget_text(drift.budget)} | described.facts
    return replace(described, facts=facts | figures.facts | rest, listings=figures.listings)


def describe_flips(flips: KeptPictures) -> Description:
    """flips.npz."""
    rows = tuple((str(i), f"{p.shape[1]} x {p.shape[0]}") for i, p in zip(flips.indices, flips.pictures, strict=True))
    facts = {"images": f"{len(rows)} whose answer flipped, the worst first"}
    return Description("Flipped images", facts, (Listing("Pictures", ("image", "pixels"), rows),))


def describe_golden(pair: GoldenPair) -> Description:
    """golden.npz: one image and its network input."""
    height, width, channels = pair.pixels.shape
    facts = {
        "image": f"{width} x {height}, {'grey' if channels == 1 else 'RGB'}",
        "tensor": f"{pair.tensor.dtype} {pair.tensor.shape}, {pair.tensor.min():.4g} to {pair.tensor.max():.4g}",
    }
    return Description("Golden pair: what preprocessing must make of an image", facts)


def describe_steps(record: dict[str, StepRecord]) -> Description:
    """steps.json."""

    def position(name: str) -> int:
        return min((ARTIFACTS.index(file) for file in record[name].writes if file in ARTIFACTS), default=len(ARTIFACTS))

    steps = sorted(record, key=position)
    rows = tuple(
        (name if i == 0 else "", file, sha256)
        for name in steps
        for i, (file, sha256) in enumerate(sorted(record[name].writes.items()))
    )
    return Description("Steps of a build", {"done": ", ".join(steps)}, (Listing("Written", ("step", "file", "sha256"), rows),))


def describe_folder(folder: Path) -> Description:
    """A build folder: its files, checked against their recorded digests, and the verdict."""
    build = BuildFolder(folder)
    described, drift = describe_manifest(build.manifest), build.find(DRIFT_ARTIFACT)
    sizes = {}
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.name.startswith("."):
                sizes[path.name] = size_text(path.stat().st_size)
    verify_folder(build, complete=False)  # at its end it notices a build that has begun meanwhile
    facts = {"digests": "every recorded file in the folder matches its digest"}
    facts |= describe_drift(drift).facts if drift is not None else {"verdict": f"none: no {DRIFT}"}
    chosen = ("model", "created", "engine", "backend", "compute capability", "asked for", "does")
    facts |= {name: described.facts[name] for name in chosen}
    listings = [Listing("Files", ("file", "size"), tuple(sizes.items())), *described.listings[1:]]
    network = build.find(NETWORK_ARTIFACT)
    if network is not None:
        facts["certificate"] = headline(network)
        listings.append(kinds_listing(network))
    return Description(f"Build folder {folder}", facts, tuple(listings), described.warnings)


def shares_text(shares: dict[str, float]) -> str:
    """Shares by precision, largest first: 97.1% int8, 2.9% fp16."""
    return ", ".join(f"{share:.1%} {name}" for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])))
