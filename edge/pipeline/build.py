"""`ufovit build`: the steps from a network to a verdict, in order; each reads and writes files of one build folder.

export     checkpoint -> model.onnx, export.json, golden.npz
import     in its place, for an ONNX file -> model.onnx, import.json, golden.npz
certify    model.onnx + calibration images -> certificate.json, xnorm.json, model.folded.onnx   where layers are FP16
fp16       the last graph -> fp16_plan.json, what its FP16 engine runs               int8 for TensorRT-RTX
calibrate  the last graph + calibration images -> model.refined.onnx, calibration.json   int8
quantize   model.refined.onnx + calibration.json -> model.int8.onnx                    int8
type       FP16, and FP32 where the certificate asks for it -> model.typed.onnx        fp16, and int8 for a GPU
engine     the last graph -> engine, manifest.json
speed      engine, fp16_plan.json -> speed.json, the expected speed beside FP16       int8 for TensorRT-RTX
drift      engine, or its graph on the CPU, against model.onnx on images -> drift.json, logits.npz, flips.npz
report     everything above -> report.html
"""

from collections.abc import Iterator

from edge.pipeline.build_inputs import BuildInputs, resolve_inputs, say_notes
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.preflight import check_inputs
from edge.pipeline.request_checks import SEQUENTIAL
from edge.pipeline.step_counter import StepCounter
from edge.pipeline.steps.calibrate import calibrate_step
from edge.pipeline.steps.certify import certify_step
from edge.pipeline.steps.drift import Question, drift_step
from edge.pipeline.steps.engine import engine_step
from edge.pipeline.steps.export import export_step
from edge.pipeline.steps.import_onnx import import_step
from edge.pipeline.steps.quantize import quantize_step
from edge.pipeline.steps.report import report_step
from edge.pipeline.steps.speed import fp16_step, speed_step
from edge.pipeline.steps.type_fp16 import type_fp16_step
from edge.pipeline.workspace import RANDOM_WEIGHTS_NOTICE, BuildOutcome, Step, Workspace
from edge.progress import Progress
from edge.tasks.budget import budget_for
from engines.build_folder.file_names import ARTIFACTS, FOLDED, MODEL, QUANTIZED, TYPED
from engines.build_folder.folder import BuildFolder
from engines.select_target import judged_here


def build_model(request: BuildRequest, progress: Progress) -> BuildOutcome:
    """Build a model. Raises UfovitError; all inputs are checked before anything is written."""
    inputs = resolve_inputs(request)
    if inputs.network.random_weights:
        progress.say(RANDOM_WEIGHTS_NOTICE)
    for images in (inputs.eval_images, inputs.calib_images):
        say_notes(images, progress)

    def preflight(first_step: str) -> None:
        with progress.task("inputs") as advance:
            check_inputs(request, inputs, first_step, advance)

    opened = Workspace.open(request.out, ARTIFACTS, force=request.force, on_wait=progress.say, before_change=preflight)
    with opened as workspace:
        for step in _steps(request, inputs, workspace, StepCounter(request, inputs, progress.say)):
            workspace.run(step, progress)
        return workspace.outcome()


def _steps(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, counter: StepCounter) -> Iterator[Step]:
    """The steps in order; each is created after the previous one has run, because it needs the digests of its files."""
    yield export_step(request, inputs) if inputs.network.imported is None else import_step(request, inputs)
    graph = MODEL
    certify = certify_step(request, inputs, workspace)
    if certify is not None:
        yield certify
        graph = FOLDED
    compared = request.precision == "int8" and counter.counts
    if compared:
        yield fp16_step(counter, workspace, graph)
    if request.precision == "int8":
        yield calibrate_step(request, inputs, workspace, graph, counter)
        yield quantize_step(request, inputs, workspace)
        graph = QUANTIZED
    if request.precision == "fp16" or (request.precision == "int8" and request.target.float_type == "fp16"):
        yield type_fp16_step(request, inputs, workspace, graph)
        graph = TYPED
    yield engine_step(request, inputs, workspace, graph, counter)
    if compared:
        yield speed_step(request, workspace)
    task = inputs.network.task
    budget = budget_for(task.name, request.max_drop_points, request.min_sqnr_db, request.min_cosine)
    sequential = request.eval_images in (None, SEQUENTIAL)
    question = Question(inputs.eval_images, labelled=task.labelled, budget=budget, sequential=sequential)
    yield drift_step(BuildFolder(request.out, building=True), question, here=judged_here(request.target))
    yield report_step(workspace)
