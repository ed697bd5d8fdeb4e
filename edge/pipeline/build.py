"""From a checkpoint to a verdict: the steps of `ufovit build`, each reading and writing files of one build folder.

export     checkpoint -> model.onnx, export.json, golden.npz
certify    model.onnx + calibration images -> xnorm.json, model.folded.onnx            fp16, int8
calibrate  model.folded.onnx + calibration images -> model.refined.onnx, calibration.json   int8
quantize   model.refined.onnx + calibration.json -> model.int8.onnx                    int8
type       FP16, and FP32 where the certificate asks for it -> model.typed.onnx        fp16, and int8 for a GPU
engine     the last graph -> engine, manifest.json
drift      engine, or its graph on the CPU, against model.onnx on images -> drift.json, logits.npz, flips.npz
report     everything above -> report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.pipeline import steps
from edge.pipeline.build_request import BuildInputs, BuildRequest, resolve_inputs
from edge.pipeline.preflight import check_inputs
from edge.pipeline.step import BuildOutcome, Step, run_step
from edge.pipeline.workspace import Workspace
from edge.progress import Progress
from engines.build_folder.file_names import (
    ARTIFACTS,
    CALIBRATION,
    EXPORT,
    FOLDED,
    GOLDEN,
    MANIFEST,
    MODEL,
    QUANTIZED,
    REFINED,
    TYPED,
    XNORM,
)
from engines.build_folder.folder import BuildFolder
from engines.hardware import versions


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
        build.drift()
        build.report()
        verdict = BuildFolder(request.out).read(DRIFT_ARTIFACT).verdict
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
        paths = (self.path(MODEL), self.path(EXPORT), self.path(GOLDEN))
        work = partial(steps.export, self.request, self.inputs, *paths)
        self._step("export", reads, (MODEL, EXPORT, GOLDEN), work)

    def certify(self) -> str:
        reads = {
            "onnx": self.workspace.sha256(MODEL),
            "images": self.inputs.calib_images.sha256,
            "preprocess": self.inputs.info.preprocess.sha256,
            "precisions": list(self.request.certified_precisions),
            "versions": versions("onnx", "onnxruntime", "numpy"),
        }
        work = partial(steps.certify, self.request, self.inputs, self.path(MODEL), self.path(XNORM), self.path(FOLDED))
        self._step("certify", reads, (XNORM, FOLDED), work)
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
        work = partial(steps.calibrate, self.request, self.inputs, *paths)
        self._step("calibrate", reads, (REFINED, CALIBRATION), work)

    def quantize(self) -> str:
        reads = {
            "onnx": self.workspace.sha256(REFINED),
            "calibration": self.workspace.sha256(CALIBRATION),
            "keep_float": list(self.request.keep_float),
        }
        work = partial(steps.quantize, self.request, self.path(REFINED), self.path(CALIBRATION), self.path(QUANTIZED))
        self._step("quantize", reads, (QUANTIZED,), work)
        return QUANTIZED

    def type_fp16(self, graph: str) -> str:
        reads = {
            "onnx": self.workspace.sha256(graph),
            "certificate": self.workspace.sha256(XNORM),
            "images": self.inputs.calib_images.sha256,
        }
        unquantized = self.path(REFINED) if self.request.precision == "int8" else None
        paths = steps.TypingPaths(self.path(graph), unquantized, self.path(XNORM), self.path(TYPED))
        work = partial(steps.type_fp16, self.inputs, paths)
        self._step("type", reads, (TYPED,), work)
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
            "backend": request.target.backend,
            "builder": request.builder.as_json(request.target, request.out),
            "versions": versions("tensorrt_rtx", "tensorrt", "onnxruntime"),
        }
        work = partial(steps.engine, request, self.inputs, self.path(graph))
        self._step("engine", reads, (request.engine_file, MANIFEST), work)

    def drift(self) -> None:
        question = steps.Question(self.inputs.eval_images, labelled=True, budget_points=self.request.max_drop_points)
        step = steps.drift_step(BuildFolder(self.request.out), question, here=self.request.engine_runs_here)
        run_step(self.workspace, self.progress, step)

    def report(self) -> None:
        run_step(self.workspace, self.progress, steps.report_step(self.workspace))

    def _step(self, name: str, reads: dict[str, Any], writes: tuple[str, ...], run: Any) -> None:
        run_step(self.workspace, self.progress, Step(name, reads, writes, lambda advance: run(advance=advance)))
