"""Judge a finished build again, attribute its drift, record its measured speed, render its report again.

drift      engine, or its graph on the CPU, against the FP32 graph or its stored answers -> drift.json, logits.npz, flips.npz
attribute  the graphs, layer by layer -> attribution.json
bench      a measurement of `ufovit bench --against` -> measured_speed.json
report     everything in the folder -> report.html

The folder may have been moved or copied. Its other files are compared with their recorded digests first. A signature is
removed with the files that it covered.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from calib.artifact import write_artifact
from calib.errors import ArtifactError, InputError
from edge.attribution.attribution_record import ATTRIBUTION_ARTIFACT
from edge.drift.drift_report import DRIFT_ARTIFACT, DriftReport
from edge.drift.stored_reference import StoredAnswers, read_stored
from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.pipeline.build_inputs import judging_images, say_notes
from edge.pipeline.judge_options import JudgeOptions
from edge.pipeline.request_checks import SEQUENTIAL, image_count
from edge.pipeline.steps.drift import Question, drift_step
from edge.pipeline.steps.report import report_step
from edge.pipeline.verdict_images import open_verdict_images
from edge.pipeline.workspace import BuildOutcome, Step, Workspace, locked
from edge.progress import Advance, Progress
from edge.tasks.budget import budget_for
from edge.tasks.registry import task_of
from engines.build_folder.file_names import (
    ANSWERS,
    ARTIFACTS,
    ATTRIBUTION,
    DRIFT,
    MANIFEST,
    MEASURED_SPEED,
    MODEL,
    PICTURES,
    REPORT,
)
from engines.build_folder.folder import BuildFolder
from engines.build_folder.verify import verify_folder
from engines.hardware import versions
from engines.select_target import judged_here
from engines.speed_estimate import MeasuredSpeed
from engines.targets import TARGETS

_JUDGED = (DRIFT, ANSWERS, PICTURES, ATTRIBUTION, REPORT)
"""Files that these steps write: damage to one is not a reason to refuse."""


def rejudge_build(folder: Path, options: JudgeOptions, progress: Progress) -> BuildOutcome:
    """Judge a finished build, and attribute its drift if asked to. Files whose reasons have not changed are left as they are.

    Raises InputError for a folder with changed files, for images that are not available, for stored answers of another build or
    other images, and for an attribution without graphs; MissingError when the folder cannot be written or the FP32 graph cannot
    be run.
    """
    with locked(folder, progress.say):
        build = BuildFolder(folder, building=True)
        verify_folder(build, ignore=_JUDGED)
        manifest = build.manifest
        question = _question(build, options)
        say_notes(question.images, progress)
        target = TARGETS.get(manifest.target)
        here = manifest.bundle is not None or target is None or judged_here(target)
        steps = [drift_step(build, question, here=here)]
        if options.attribute:
            steps.append(_attribute_step(build, question.images))
        else:
            build.find(ATTRIBUTION_ARTIFACT)  # refused now, not by the report when the verdict is replaced

        def preflight(_step: str) -> None:
            if question.stored is None or options.attribute:
                import onnxruntime  # noqa: F401  # a missing library is reported at once

        workspace = _reopened(build, {"report", *(step.name for step in steps)}, preflight)
        for step in steps:
            workspace.run(step, progress)
        if manifest.bundle is None:
            workspace.run(report_step(workspace), progress)
        return workspace.outcome()


def record_speed(folder: Path, measured: MeasuredSpeed, progress: Progress) -> None:
    """Write the measured speed of a finished build's engine into its folder, and render its report again.

    Raises InputError for a folder with changed files, and for a measurement of another engine; MissingError when the folder
    cannot be written.
    """
    with locked(folder, progress.say):
        build = BuildFolder(folder, building=True)
        verify_folder(build, ignore=(MEASURED_SPEED, REPORT))
        if measured.engine_sha256 != build.manifest.engine.sha256:
            raise ArtifactError(
                "another engine was measured",
                where=build.path / build.manifest.engine.file,
                found=measured.engine_sha256,
                allowed=build.manifest.engine.sha256,
                next_command="ufovit bench BUILD --against OTHER --record",
            )

        def work(out: Path, _advance: Advance) -> None:
            write_artifact(out / MEASURED_SPEED, measured)

        workspace = _reopened(build, {"bench", "report"}, lambda _step: None)
        workspace.run(Step("bench", asdict(measured), (MEASURED_SPEED,), work), progress)
        if build.manifest.bundle is None:
            workspace.run(report_step(workspace), progress)


def redraw(folder: Path, progress: Progress) -> bool:
    """Render the report of a finished build again from its other files. False if the report is up to date.

    Raises ArtifactError, before anything is written, when a file other than the report does not match its record, or
    files that a report needs are missing, as on a device; MissingError when the folder cannot be written.
    """
    from edge.report.inputs import gather

    with locked(folder, progress.say):
        build = BuildFolder(folder, building=True)
        if build.manifest.bundle is not None:
            raise ArtifactError(
                "a build from a bundle has no report: it lacks the graphs that a report describes",
                where=folder,
                allowed="a folder of ufovit build MODEL PRECISION",
                next_command=f"ufovit inspect {folder}",
            )

        gather(build)
        verify_folder(build, ignore=(REPORT,))

        def preflight(_step: str) -> None:
            from edge.report import render  # noqa: F401  # a missing library is reported at once

        workspace = _reopened(build, {"report"}, preflight)
        workspace.run(report_step(workspace, build), progress)
        return bool(workspace.ran)


def _reopened(build: BuildFolder, again: set[str], preflight: Callable[[str], None]) -> Workspace:
    """The folder's workspace with all steps done but those named in `again`."""
    done = [name for name in build.steps if name not in again]
    return Workspace(build.path, ARTIFACTS, before_change=preflight, reused=done)


def _attribute_step(build: BuildFolder, images: ImageSet) -> Step:
    from edge.attribution.attribute import TRIAL_IMAGES, attribute_build
    from edge.attribution.build_graphs import require_graphs

    require_graphs(build)
    reads = {
        "manifest": build.sha256(MANIFEST),  # it records every graph
        "images": images.take(TRIAL_IMAGES).sha256,
        "versions": versions("onnx", "onnxruntime", "numpy"),
    }

    def work(out: Path, advance: Advance) -> None:
        attribute_build(build, images, advance, out)

    return Step("attribute", reads, (ATTRIBUTION,), work)


def _question(build: BuildFolder, options: JudgeOptions) -> Question:
    """What to judge on: by default the images and the budget of the previous verdict."""
    stored, last = _stored(build, options), _last_drift(build)
    images, labelled = _images(build, options, last)
    wanted = (options.max_drop_points, options.min_sqnr_db, options.min_cosine)
    budget = budget_for(build.manifest.task, *wanted, None if last is None else last.budget)
    again = options.images is None and options.data is None and options.unlabelled is None
    sequential = options.images == SEQUENTIAL or (again and last is not None and last.look is not None)
    return Question(images, labelled, budget, stored, sequential)


def _last_drift(build: BuildFolder) -> DriftReport | None:
    """The previous verdict; None where there is none, or it does not match its record."""
    try:
        build.check(DRIFT)
    except InputError:
        return None
    return build.read(DRIFT_ARTIFACT) if DRIFT in build.recorded else None


def _stored(build: BuildFolder, options: JudgeOptions) -> StoredAnswers | None:
    if options.reference is not None:
        return read_stored(options.reference)
    if build.manifest.bundle is not None:
        raise ArtifactError(
            "the folder holds no FP32 graph: it was built from a bundle",
            where=build.path / MODEL,
            allowed="--reference FOLDER, with the graph's answers to the same images",
            next_command="ufovit drift BUILD --data DIR where the bundle was made; copy its drift.json, logits.npz, steps.json",
        )
    return None


def _images(build: BuildFolder, options: JudgeOptions, last: DriftReport | None) -> tuple[ImageSet, bool]:
    """The requested images, by default those of the previous verdict, and whether they have labels."""
    count, task = image_count(options.images), task_of(build.manifest)
    if options.unlabelled is not None:
        images = open_unlabelled(options.unlabelled)
        return images.take(count or len(images)), False
    if options.data is not None or last is None:
        images = judging_images(options.data, task)
        return images.take(count or len(images)), task.labelled
    labelled: bool = last.comparison.with_truth
    images = open_verdict_images(last, task, f"ufovit drift {build.path} --data DIR")
    if options.images is None and last.look is None:
        count = last.images
    return images.take(count or len(images)), labelled
