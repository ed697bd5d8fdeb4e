"""Build folders for the gate, whole and consistent, with what a test plants in them; and builds that exist in memory alone."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from network_certificates import add_certificate
from report_folder import Recipe, answers, make_folder

from calib.artifact import write_artifact
from calib.files import sha256_file
from edge.drift.drift_report import DRIFT_ARTIFACT, Source, Subject, judge_sides
from edge.gate import build_figures, compare_builds, update
from edge.gate.baseline import BaselineFigures, Identity, Margin, Origin, XNormMargins
from edge.gate.build_figures import BuildFigures
from edge.tasks.budget import Budget
from edge.tasks.classification.logits import Logits, write_logits
from edge.tasks.registry import load_task
from engines.build_folder.file_names import ARTIFACTS
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import write_manifest
from engines.build_folder.step_record import StepRecord, write_record

RECIPE = Recipe()


@dataclass(frozen=True)
class Planted:
    """Changes of a build: functions of the logits and of what the JSON artifacts hold, which they edit in place."""

    logits: object = None
    drift: object = None
    manifest: object = None
    xnorm: object = None
    network: object = None
    engine: bytes | None = None
    budget: float = 5.0


NOTHING = Planted()


def read_build(folder, /):
    """The figures of the build in a folder."""
    return build_figures.read_build(BuildFolder(folder))


def gate(folder, /, *arguments):
    """The gate on the build in a folder."""
    return compare_builds.gate(BuildFolder(folder), *arguments)


def update_baseline(folder, /, *arguments, **options):
    """A baseline of the build in a folder."""
    return update.update_baseline(BuildFolder(folder), *arguments, **options)


def plant(folder: Path, planted: Planted = NOTHING, recipe: Recipe = RECIPE) -> Path:
    """A finished build with changes, every digest that is recorded made to fit."""
    make_folder(folder, recipe)
    if recipe.precision != "fp32":
        add_certificate(folder)
        edit(folder / "certificate.json", planted.network)
    reference, engine, labels = answers(recipe)
    if planted.logits is not None:
        planted.logits(reference, engine, labels)
    task, sides = load_task("classification", recipe.labels), Logits(reference, engine, labels).sides
    old = BuildFolder(folder).read(DRIFT_ARTIFACT)
    subject = Subject(**{f.name: getattr(old, f.name) for f in fields(Subject)})
    report = judge_sides(task, subject, sides, Budget(planted.budget), random_weights=recipe.random_weights)
    write_logits(folder / "logits.npz", Logits(reference, engine, labels))
    write_artifact(folder / "drift.json", report)
    if planted.engine is not None:
        (folder / "engine.engine").write_bytes(planted.engine)
    edit(folder / "drift.json", planted.drift)
    edit(folder / "xnorm.json", planted.xnorm)
    written = BuildFolder(folder).manifest
    engine_record = replace(written.engine, sha256=sha256_file(folder / "engine.engine"))
    xnorm = replace(written.xnorm, sha256=sha256_file(folder / "xnorm.json")) if written.xnorm else None
    write_manifest(folder, replace(written, engine=engine_record, xnorm=xnorm))
    edit(folder / "manifest.json", planted.manifest)
    record(folder)
    return folder


def edit(path, change):
    """Change a JSON file in place; NaN is written as Python writes it."""
    if change is not None:
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))


def record(folder):
    """Record every artifact as written, as the end of a build does."""
    files = {file: sha256_file(folder / file) for file in ARTIFACTS if (folder / file).is_file()}
    write_record(folder, {"all": StepRecord("0" * 64, files)})


def lose_answers(count):
    """Right answers that turn wrong."""

    def change(reference, engine, labels):
        right = np.flatnonzero(reference.argmax(1) == labels)[:count]
        engine[right] = np.roll(engine[right], 1, axis=1)

    return change


def set_field(*path, to):
    """A change of one field, dotted by position."""

    def change(fields):
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = to

    return change


def memory_build(reference, engine, labels, identity=None, **measured):
    """A build that lies in no folder: logits (n, classes), labels (n,)."""
    classes = reference.shape[1]
    task = load_task("classification", tuple(map(str, range(classes))))
    identity = identity or Identity(
        model="ufovit_t", precision="int8", target="rtx", task="classification", random_weights=False,
        checkpoint_sha256="4" * 64, meaning={"labels_sha256": "5" * 64, "classes": classes}, data_sha256="2" * 64,
        images=len(labels), preprocess_sha256="3" * 64, judged="x",
    )  # fmt: skip
    origin = Origin("2026-01-01", "1", "trt_rtx", "1.7", "e" * 64, "f" * 64, "1" * 64, "pass")
    sites = XNormMargins("stable", {"a": Margin(5.0, 7.0)})
    source, sides = Source("x", "0" * 64, "y"), Logits(reference, engine, labels).sides
    drift = judge_sides(task, Subject(source, source, "d", "2" * 64, "3" * 64), sides, Budget(5.0), random_weights=False)
    values = {
        "answers": task.record(drift.comparison, sides), "scales": None, "share": 0.98, "engine_bytes": 1000, "xnorm": sites,
        "latency": None,
    }  # fmt: skip
    return BuildFigures(Path("build"), identity, origin, BaselineFigures(**(values | measured)), drift, task, sides, ())
