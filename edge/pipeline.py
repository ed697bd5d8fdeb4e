"""From a checkpoint to a verdict: the steps of `ufovit build`, each reading and writing files of one build folder.

export     checkpoint -> model.onnx, export.json
certify    model.onnx + calibration images -> xnorm.json, model.folded.onnx            fp16, int8
calibrate  model.folded.onnx + calibration images -> model.refined.onnx, calibration.json   int8
quantize   model.refined.onnx + calibration.json -> model.int8.onnx                    int8
type       FP16, and FP32 where the certificate asks for it -> model.typed.onnx        fp16, and int8 for a GPU
engine     the last graph -> engine, manifest.json
drift      engine, or its graph on the CPU, against model.onnx on images -> drift.json, logits.npz
report     everything above -> report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge import steps
from edge.artifacts import (
    ARTIFACTS,
    CALIBRATION,
    DRIFT,
    EXPORT,
    FOLDED,
    LOGITS,
    MANIFEST,
    MODEL,
    QUANTIZED,
    REFINED,
    REPORT,
    TYPED,
    XNORM,
)
from edge.drift.compare import Verdict
from edge.preflight import check_inputs
from edge.progress import Progress
from edge.request import BuildInputs, BuildRequest, resolve_inputs
from edge.workspace import Workspace


@dataclass(frozen=True)
class BuildOutcome:
    """What `run` leaves: the folder, the verdict on accuracy, the steps that ran and those that were reused."""

    folder: Path
    verdict: Verdict
    ran: tuple[str, ...]
    reused: tuple[str, ...]


def run(request: BuildRequest, progress: Progress) -> BuildOutcome:
    """Carry out a build. Raises UfovitError; everything about the inputs is checked before anything is written."""
    inputs = resolve_inputs(request)
    if inputs.info.random_weights:
        progress.say("RANDOM WEIGHTS: nothing below says anything about accuracy; every artifact is stamped")

    def preflight(first_step: str) -> None:
        with progress.task("inputs") as advance:
            check_inputs(request, inputs, first_step, advance)

    opened = Workspace.open(request.out, ARTIFACTS, force=request.force, on_wait=progress.say, before_change=preflight)
    with opened as workspace:
        build = _Build(request, inputs, workspace, progress)
        build.export()
        graph = MODEL
        if request.precision != "fp32":
            graph = build.certify()
        if request.precision == "int8":
            build.calibrate()
            graph = build.quantize()
        if request.precision == "fp16" or (request.precision == "int8" and request.target.float_type == "fp16"):
            graph = build.type_fp16(graph)
        build.engine(graph)
        build.drift(graph)
        build.report()
        verdict = steps.read_drift(request.out / DRIFT).verdict
        return BuildOutcome(request.out, verdict, tuple(workspace.ran), tuple(workspace.reused))


@dataclass(frozen=True)
class _Build:
    """One build under way: what each step reads, writes and runs."""

    request: BuildRequest
    inputs: BuildInputs
    workspace: Workspace
    progress: Progress

    def path(self, file: str) -> Path:
        return self.request.out / file

    def export(self) -> None:
        info, images = self.inputs.info, self.inputs.calib_images
        reads = {
            "checkpoint": info.sha256,
            "info": info.as_json(),
            "parity_images": images.sha256,
            "versions": versions("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"),
        }
        run_step = partial(steps.export, self.request, self.inputs, self.path(MODEL), self.path(EXPORT))
        self._step("export", reads, (MODEL, EXPORT), run_step)

    def certify(self) -> str:
        reads = {
            "onnx": self.workspace.sha256(MODEL),
            "images": self.inputs.calib_images.sha256,
            "preprocess": self.inputs.info.preprocess.sha256,
            "precisions": list(self.request.certified_precisions),
            "versions": versions("onnx", "onnxruntime", "numpy"),
        }
        run_step = partial(steps.certify, self.request, self.inputs, self.path(MODEL), self.path(XNORM), self.path(FOLDED))
        self._step("certify", reads, (XNORM, FOLDED), run_step)
        return FOLDED

    def calibrate(self) -> None:
        reads = {
            "onnx": self.workspace.sha256(FOLDED),
            "images": self.inputs.calib_images.sha256,
            "preprocess": self.inputs.info.preprocess.sha256,
            "method": self.request.method,
            "effort": self.request.effort,
            "keep_float": list(self.request.keep_float),
            "versions": versions("onnx", "onnxruntime", "numpy"),
        }
        paths = (self.path(FOLDED), self.path(REFINED), self.path(CALIBRATION))
        run_step = partial(steps.calibrate, self.request, self.inputs, *paths)
        self._step("calibrate", reads, (REFINED, CALIBRATION), run_step)

    def quantize(self) -> str:
        reads = {
            "onnx": self.workspace.sha256(REFINED),
            "calibration": self.workspace.sha256(CALIBRATION),
            "keep_float": list(self.request.keep_float),
        }
        run_step = partial(steps.quantize, self.request, self.path(REFINED), self.path(CALIBRATION), self.path(QUANTIZED))
        self._step("quantize", reads, (QUANTIZED,), run_step)
        return QUANTIZED

    def type_fp16(self, graph: str) -> str:
        reads = {
            "onnx": self.workspace.sha256(graph),
            "certificate": self.workspace.sha256(XNORM),
            "images": self.inputs.calib_images.sha256,
        }
        run_step = partial(steps.type_fp16, self.inputs, self.path(graph), self.path(XNORM), self.path(TYPED))
        self._step("type", reads, (TYPED,), run_step)
        return TYPED

    def engine(self, graph: str) -> None:
        request = self.request
        reads = {
            "onnx": self.workspace.sha256(graph),
            "export": self.workspace.sha256(EXPORT),
            "target": request.target.name,
            "precision": request.precision,
            "batch": [request.batch.min, request.batch.opt, request.batch.max],
            "int8_floor": request.int8_floor,
            "versions": versions("tensorrt_rtx", "tensorrt", "onnxruntime"),
        }
        run_step = partial(steps.engine, request, self.inputs, self.path(graph))
        self._step("engine", reads, (request.engine_file, MANIFEST), run_step)

    def drift(self, graph: str) -> None:
        reads = {
            "reference": self.workspace.sha256(MODEL),
            "manifest": self.workspace.sha256(MANIFEST),
            "images": self.inputs.eval_images.sha256,
            "preprocess": self.inputs.info.preprocess.sha256,
            "budget": self.request.max_drop_points,
            "versions": versions("onnxruntime"),
        }
        judged = self.request.engine_file if self.request.engine_runs_here else graph
        run_step = partial(steps.drift, self.request, self.inputs, self.path(MODEL), self.path(judged))
        self._step("drift", reads, (DRIFT, LOGITS), run_step)

    def report(self) -> None:
        files = (EXPORT, MANIFEST, DRIFT, LOGITS, *((XNORM,) if self.request.precision != "fp32" else ()))
        reads = {file: self.workspace.sha256(file) for file in files}
        run_step = partial(steps.report, self.request.out)
        self._step("report", {**reads, "versions": versions("jinja2", "matplotlib")}, (REPORT,), run_step)

    def _step(self, name: str, reads: dict[str, Any], writes: tuple[str, ...], run_step: Any) -> None:
        def watched() -> None:
            with self.progress.task(name) as advance:
                run_step(advance=advance)

        if not self.workspace.step(name, reads, writes, watched):
            self.progress.say(f"  {name}: unchanged, reused")


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions of distributions, "" for those that are not there, without importing them."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
