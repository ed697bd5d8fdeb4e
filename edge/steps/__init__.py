"""The work of each step of a build; `edge.pipeline` decides which of them run."""

from __future__ import annotations

from edge.steps.built import engine
from edge.steps.graphs import TypingPaths, calibrate, certify, export, quantization_scheme, quantize, type_fp16
from edge.steps.judging import drift, read_drift, report

__all__ = [
    "TypingPaths",
    "calibrate",
    "certify",
    "drift",
    "engine",
    "export",
    "quantization_scheme",
    "quantize",
    "read_drift",
    "report",
    "type_fp16",
]
