"""The JSON artifacts of a build, and the folder that holds them, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calib.artifact import read_artifact
from calib.calibration_table import load_table
from calib.errors import InputError
from edge.drift.drift_report import DriftReport
from edge.drift.pictures import read_pictures
from edge.inspect.description import Description, Listing, size_text
from edge.report.inputs import REMAKE, read_export
from engines.build_folder.file_names import ARTIFACTS, DRIFT
from engines.build_folder.manifest import MANIFEST, CalibrationRecord, EngineManifest, FileRecord, read_manifest, verify
from engines.build_folder.safe_files import read_contained
from engines.build_folder.step_record import parse_record

RANDOM_STAMP = "RANDOM WEIGHTS: nothing here says anything about accuracy"
LISTED = 20


def describe_manifest(path: Path) -> Description:
    """manifest.json."""
    return manifest_description(read_artifact(path, EngineManifest, remake=REMAKE))


def manifest_description(manifest: EngineManifest) -> Description:
    """An engine: what it is, what it takes, what it does in which precision."""
    engine, receipt = manifest.engine, manifest.receipt
    serves = ", ".join(engine.compute_capabilities) or "no GPU: a CPU engine"
    facts = {
        "model": f"{manifest.model}, {manifest.precision}, target {manifest.target}",
        "created": manifest.created,
        "engine": f"{engine.file}, {size_text(engine.bytes)}, sha256 {engine.sha256}",
        "backend": f"{engine.backend} {engine.backend_version}",
        "compute capability": serves,
        "input": f"{manifest.input.name}: {manifest.input.dtype} {list(manifest.input.shape)}",
        "output": f"{manifest.output.name}: {manifest.output.dtype} {list(manifest.output.shape)}",
        "labels": f"{len(manifest.labels)}: {', '.join(manifest.labels[:LISTED])}" + (" ..." * (len(manifest.labels) > LISTED)),
        "preprocess": ", ".join(f"{name} {value}" for name, value in sorted(manifest.preprocess.items()) if name != "sha256"),
        "asked for": shares_text(receipt.requested),
        "does": f"{shares_text(receipt.actual)} of the multiply-accumulates, read from the engine",
    }
    facts |= {f"note {i}": note for i, note in enumerate(manifest.notes, start=1)}
    files = [(name, record.file, record.sha256) for name, record in file_records(manifest).items()]
    listings = [Listing("Made from", ("what", "file", "sha256"), tuple(files))]
    if receipt.fallbacks:
        rows = [(f.layer, f.requested, f.actual, f"{f.mac_fraction:.2%}", f.reason) for f in receipt.fallbacks]
        listings.append(limited(f"{len(rows)} layers do not run in {manifest.precision}", _FALLBACK_COLUMNS, rows))
    warnings = (RANDOM_STAMP,) if manifest.random_weights else ()
    return Description("Engine manifest", facts, tuple(listings), warnings)


def describe_table(path: Path) -> Description:
    """calibration.json."""
    table = load_table(path)
    by_range = sorted(table.tensors.items(), key=lambda item: (-item[1].amax, item[0]))
    facts = {
        "method": table.method,
        "images": str(table.images),
        "tensors": str(len(table.tensors)),
        "graph": f"sha256 {table.onnx_sha256}",
        "images' digest": f"sha256 {table.data_sha256}",
        "preprocessing": f"sha256 {table.preprocess_sha256}" if table.preprocess_sha256 else "none: arrays as they are",
        "refinements": ", ".join(table.refinements) or "none",
    }
    if table.source_sha256:
        facts["refined from"] = f"sha256 {table.source_sha256}"
    if table.range_shift is not None:
        shift = table.range_shift
        facts["ranges move by"] = (
            f"{shift.median:.1%} in the median from one half of the images to the other, most at {shift.tensor}"
        )
    if table.float_nodes:
        facts["left in float"] = ", ".join(table.float_nodes)
    if by_range:
        facts["amax"] = f"{by_range[-1][1].amax:.4g} to {by_range[0][1].amax:.4g}"
    proven = sum(scale.source == "proof" for scale in table.tensors.values())
    facts["from proof"] = f"{proven} of {len(table.tensors)} scales: a bound for every image, not above what the images gave"
    rows = [(name, f"{scale.amax:.5g}", f"{scale.scale:.5g}", scale.method, scale.source) for name, scale in by_range]
    warnings = ("SYNTHETIC IMAGES: these ranges were not seen on real images",) if table.synthetic else ()
    listing = limited("Widest ranges first", ("tensor", "amax", "scale", "method", "source"), rows)
    return Description("Calibration table", facts, (listing,), warnings)


def describe_drift(path: Path) -> Description:
    """drift.json."""
    return drift_description(read_artifact(path, DriftReport, remake=REMAKE))


def drift_description(drift: DriftReport) -> Description:
    """The verdict and the figures behind it."""
    facts = {
        "verdict": f"{drift.verdict.upper()}: {drift.reason}",
        "judged": f"{drift.engine.file}, run on {drift.engine.ran_on}",
        "against": f"{drift.reference.file}, run on {drift.reference.ran_on}",
        "images": f"{drift.images} of {drift.data}",
    }
    facts |= {name.replace("_", " "): _value_text(value) for name, value in asdict(drift.comparison).items()}
    return Description("Drift report", facts, warnings=(RANDOM_STAMP,) if drift.random_weights else ())


def _value_text(value: Any) -> str:
    """A figure of a task in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')}: {_value_text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)) and not all(isinstance(part, str) for part in value):
        return f"{len(value)} rows"
    return "; ".join(value) if isinstance(value, (list, tuple)) else f"{value:.5g}" if isinstance(value, float) else str(value)


def describe_export(path: Path) -> Description:
    """export.json."""
    record = read_export(path)
    simplification, parity = record.simplification, record.parity
    facts = {
        "graph": f"sha256 {record.onnx_sha256}",
        "opset": str(record.opset),
        "foldings": ", ".join(record.foldings) or "none",
        "simplification": f"{'used' if simplification.used else 'not used'}: {simplification.reason}, "
        f"{simplification.nodes_before} nodes before, {simplification.nodes_after} after",
        "parity with torch": f"SQNR {parity.sqnr_db:.1f} dB, largest difference {parity.max_abs:.3g}, {parity.images} images",
    }
    return Description("Export record", facts)


def describe_steps(path: Path) -> Description:
    """steps.json."""
    order = {file: i for i, file in enumerate(ARTIFACTS)}
    steps = sorted(
        parse_record(read_contained(path), path).items(),
        key=lambda item: min((order.get(file, len(order)) for file in item[1].writes), default=len(order)),
    )
    rows = [
        (name if i == 0 else "", file, sha256)
        for name, step in steps
        for i, (file, sha256) in enumerate(sorted(step.writes.items()))
    ]
    return Description(
        "Steps of a build",
        {"done": ", ".join(name for name, _ in steps)},
        (Listing("Written", ("step", "file", "sha256"), tuple(rows)),),
    )


def describe_folder(folder: Path) -> Description:
    """A build folder: what is in it, whether the files are those recorded, and the verdict."""
    if not (folder / MANIFEST).is_file():
        raise InputError("no build folder", where=folder, found=f"no {MANIFEST}", next_command=REMAKE)
    manifest = verify(folder, complete=False)
    described = manifest_description(manifest)
    facts = {"digests": "every recorded file that is here is the one that was recorded"}
    if (folder / DRIFT).is_file():
        facts |= drift_description(read_artifact(folder / DRIFT, DriftReport, remake=REMAKE)).facts
    else:
        facts["verdict"] = f"none: no {DRIFT}"
    chosen = ("model", "created", "engine", "backend", "compute capability", "asked for", "does")
    facts |= {name: described.facts[name] for name in chosen}
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    listing = Listing("Files", ("file", "size"), tuple((p.name, size_text(p.stat().st_size)) for p in files))
    return Description(f"Build folder {folder}", facts, (listing, *described.listings[1:]), described.warnings)


def beside(path: Path) -> EngineManifest | None:
    """The manifest beside an engine file, None where there is none."""
    return read_manifest(path.parent) if (path.parent / MANIFEST).is_file() else None


def file_records(manifest: EngineManifest) -> dict[str, FileRecord | CalibrationRecord]:
    """Role -> file record, of those that the manifest has."""
    records = {
        "checkpoint": manifest.checkpoint,
        "FP32 graph": manifest.onnx,
        "XNorm certificate": manifest.xnorm,
        "folded graph": manifest.folded_onnx,
        "refined graph": manifest.refined_onnx,
        "quantized graph": manifest.qdq_onnx,
        "typed graph": manifest.typed_onnx,
        "calibration": manifest.calibration,
    }
    return {role: record for role, record in records.items() if record is not None}


def shares_text(shares: dict[str, float]) -> str:
    """Shares by precision, largest first: 97.1% int8, 2.9% fp16."""
    return ", ".join(f"{share:.1%} {name}" for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])))


_FALLBACK_COLUMNS = ("layer", "asked for", "does", "share", "why")


def limited(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Listing:
    """A table of the first LISTED rows that says how many it leaves out."""
    left = len(rows) - LISTED
    return Listing(title + (f" ({LISTED} of {len(rows)})" if left > 0 else ""), columns, tuple(rows[:LISTED]))


def describe_flips(path: Path) -> Description:
    """flips.npz in words."""
    found = read_pictures(path)
    facts = {"file": size_text(path.stat().st_size), "images": f"{len(found.indices)} whose answer flipped, the worst first"}
    rows = tuple((str(i), f"{p.shape[1]} x {p.shape[0]}") for i, p in zip(found.indices, found.pictures, strict=True))
    return Description("Flipped images", facts, (Listing("Pictures", ("image", "pixels"), rows),))
