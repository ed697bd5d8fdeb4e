"""What is done with a finished build: judge it anew, attribute its drift, draw its report anew.

drift      engine, or its graph on the CPU, against the FP32 graph or its stored answers -> drift.json, logits.npz, flips.npz
attribute  the graphs, layer by layer -> attribution.json
report     everything in the folder -> report.html

The folder may have been moved or copied. Its other files are held against what the build recorded of them before anything is
removed. A signature goes with the files that it vouched for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from calib.errors import InputError
from edge.drift.drift_report import DRIFT_ARTIFACT, DriftReport
from edge.drift.stored_reference import StoredAnswers, read_stored
from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.pipeline.build_inputs import SHIPPED_TEST, judging_images
from edge.pipeline.build_request import MAX_DROP_POINTS
from edge.pipeline.judge_request import JudgeRequest
from edge.pipeline.step import BuildOutcome, Step, run_step
from edge.pipeline.steps.drift import Question, drift_step
from edge.pipeline.steps.report import report_step
from edge.pipeline.workspace import Workspace, locked
from edge.progress import Advance, Progress
from edge.tasks.registry import task_of
from engines.build_folder.file_names import ANSWERS, ARTIFACTS, ATTRIBUTION, DRIFT, MANIFEST, MODEL, PICTURES, REPORT
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest
from engines.build_folder.verify import verify_folder
from engines.hardware import versions
from engines.select_target import judged_here
from engines.targets import TARGETS

_JUDGED = (DRIFT, ANSWERS, PICTURES, ATTRIBUTION, REPORT)
"""What these steps may write, so that damage to it is no reason to refuse."""


def rejudge_build(request: JudgeRequest, progress: Progress) -> BuildOutcome:
    """Judge a finished build, and attribute its drift if asked to. Files whose reasons have not changed are left as they are.

    Raises InputError for a folder that is not what a build left, for images that cannot be had, for stored answers of something
    else, and where drift is to be attributed without graphs; MissingError when the folder cannot be written, or the FP32 graph
    cannot be run.
    """
    folder = request.folder
    with locked(folder, progress.say):
        build = BuildFolder(folder)
        verify_folder(build, ignore=_JUDGED)
        manifest, last = build.manifest, _last_drift(build)
        question = _question(request, manifest, last)
        target = TARGETS.get(manifest.target)
        here = manifest.bundle is not None or target is None or judged_here(target)
        drift = drift_step(build, question, here=here)
        again = {"drift", "report"} | ({"attribute"} if request.attribute else set())
        attribute = _attribute_step(build, question.images) if request.attribute else None
        workspace = _reopened(build, again, lambda: _need_libraries(question, attribute))
        run_step(workspace, progress, drift)
        if attribute is not None:
            run_step(workspace, progress, attribute)
        if manifest.bundle is None:
            run_step(workspace, progress, report_step(workspace))
        verdict = BuildFolder(folder).read(DRIFT_ARTIFACT).verdict
        return BuildOutcome(folder, verdict, tuple(workspace.ran), tuple(workspace.reused))


def redraw(folder: Path, progress: Progress) -> bool:
    """Draw the report of a finished build anew from its other files. False where it is there and nothing it reads has changed.

    Raises InputError, before anything is removed or written, when a file other than the report is not the one that was
    recorded, or when files that a report stands on are missing, as on a device; MissingError when the folder cannot be written.
    """
    from edge.report.inputs import gather

    with locked(folder, progress.say):
        build = BuildFolder(folder)
        if build.manifest.bundle is not None:
            raise InputError(
                "a build from a bundle has no report: it lacks the graphs that a report stands on",
                where=folder,
                allowed="a folder of ufovit build MODEL PRECISION",
                next_command=f"ufovit inspect {folder}",
            )

        gather(build)
        verify_folder(build, ignore=(REPORT,))

        def preflight() -> None:
            from edge.report import render  # noqa: F401  # a library that is missing is missed before anything is removed

        workspace = _reopened(build, {"report"}, preflight)
        run_step(workspace, progress, report_step(workspace, build))
        return bool(workspace.ran)


def _attribute_step(build: BuildFolder, images: ImageSet) -> Step:
    from edge.attribution.attribute import TRIAL_IMAGES, attribute_build
    from edge.attribution.build_graphs import require_graphs

    require_graphs(build)
    reads = {
        "manifest": build.sha256(MANIFEST),  # it records every graph
        "images": images.take(TRIAL_IMAGES).sha256,
        "versions": versions("onnx", "onnxruntime", "numpy"),
    }

    def run(advance: Advance) -> None:
        attribute_build(build, images, advance)

    return Step("attribute", reads, (ATTRIBUTION,), run)


def _last_drift(build: BuildFolder) -> DriftReport | None:
    """What the build was last judged on; None where there is no verdict, or not the one that was recorded."""
    try:
        build.check(DRIFT)
    except InputError:
        return None
    return build.read(DRIFT_ARTIFACT) if DRIFT in build.recorded else None


def _reopened(build: BuildFolder, again: set[str], preflight: Callable[[], None]) -> Workspace:
    """The folder's workspace with all steps done but those named in `again`."""
    done = [name for name in build.steps if name not in again]
    return Workspace(build.path, ARTIFACTS, before_change=lambda _step: preflight(), reused=done)


def _need_libraries(question: Question, attribute: Step | None) -> None:
    """Miss what is missing before anything is removed."""
    if question.stored is None or attribute is not None:
        import onnxruntime  # noqa: F401  # only whether it is there


def _question(request: JudgeRequest, manifest: EngineManifest, last: DriftReport | None) -> Question:
    stored = _stored(request, manifest)
    images, labelled = _images(request, manifest, last)
    budget = request.max_drop_points
    if budget is None:
        budget = MAX_DROP_POINTS if last is None else last.budget_points
    return Question(images, labelled, budget, stored)


def _stored(request: JudgeRequest, manifest: EngineManifest) -> StoredAnswers | None:
    if request.reference is not None:
        return read_stored(request.reference)
    if manifest.bundle is not None:
        raise InputError(
            "the folder holds no FP32 graph: it was built from a bundle",
            where=request.folder / MODEL,
            allowed="--reference FOLDER, with the graph's answers to the same images",
            next_command="ufovit drift BUILD --data DIR where the bundle was made; copy its drift.json, logits.npz, steps.json",
        )
    return None


def _images(request: JudgeRequest, manifest: EngineManifest, last: DriftReport | None) -> tuple[ImageSet, bool]:
    """The images that were asked for, and whether they have labels; without a wish those of the last verdict."""
    if request.unlabelled is not None:
        images = open_unlabelled(request.unlabelled)
        return images.take(request.images or len(images)), False
    task = task_of(manifest)
    if request.data is not None or last is None:
        images = judging_images(request.data, task)
        return images.take(request.images or len(images)), True
    labelled: bool = last.comparison.with_truth
    try:
        if last.data == SHIPPED_TEST:
            images = judging_images(None, task)
        else:
            path = Path(last.data)
            images = task.open_images(path) if labelled else open_unlabelled(path)
    except InputError as error:
        raise _other_images(request, last, "they cannot be opened") from error
    if images.take(last.images).sha256 != last.data_sha256:
        raise _other_images(request, last, "they have changed since")
    return images.take(request.images or last.images), labelled


def _other_images(request: JudgeRequest, last: DriftReport, found: str) -> InputError:
    return InputError(
        "the images of the last verdict are not to be had",
        where=last.data,
        found=found,
        allowed="--data or --unlabelled with images",
        next_command=f"ufovit drift {request.folder} --data DIR",
    )
