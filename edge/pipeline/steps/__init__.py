"""The work of each step of a build; `edge.pipeline.build` decides which of them run."""

from __future__ import annotations

from edge.pipeline.steps.drift_step import Question, drift_step, report_step
from edge.pipeline.steps.engine_step import engine
from edge.pipeline.steps.graph_steps import TypingPaths, calibrate, certify, export, quantization_scheme, quantize, type_fp16

__all__ = [
    "Question",
    "TypingPaths",
    "calibrate",
    "certify",
    "drift_step",
    "engine",
    "export",
    "quantization_scheme",
    "quantize",
    "report_step",
    "type_fp16",
]
