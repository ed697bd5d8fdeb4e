"""The work of each step of a build; `edge.pipeline` decides which of them run."""

from __future__ import annotations

from edge.steps.built import engine
from edge.steps.graphs import TypingPaths, calibrate, certify, export, quantization_scheme, quantize, type_fp16
from edge.steps.judging import Question, drift_step, read_drift, report_step

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
    "read_drift",
    "report_step",
    "type_fp16",
]
