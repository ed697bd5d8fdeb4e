"""The steps of a build, one file each: what it reads, what it writes, and the work. `edge.pipeline.build` orders them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.pipeline.steps.calibrate import calibrate_step
    from edge.pipeline.steps.certify import certify_step
    from edge.pipeline.steps.drift import Question, drift_step
    from edge.pipeline.steps.engine import engine_step
    from edge.pipeline.steps.export import export_step
    from edge.pipeline.steps.quantize import quantize_step
    from edge.pipeline.steps.report import report_step
    from edge.pipeline.steps.type_fp16 import type_fp16_step

_PUBLIC = by_name(
    {
        "edge.pipeline.steps.drift": ("Question", "drift_step"),
        "edge.pipeline.steps.calibrate": ("calibrate_step",),
        "edge.pipeline.steps.certify": ("certify_step",),
        "edge.pipeline.steps.engine": ("engine_step",),
        "edge.pipeline.steps.export": ("export_step",),
        "edge.pipeline.steps.quantize": ("quantize_step",),
        "edge.pipeline.steps.report": ("report_step",),
        "edge.pipeline.steps.type_fp16": ("type_fp16_step",),
    }
)

__all__ = [
    "Question",
    "calibrate_step",
    "certify_step",
    "drift_step",
    "engine_step",
    "export_step",
    "quantize_step",
    "report_step",
    "type_fp16_step",
]
__getattr__ = lazy_exports(__name__, _PUBLIC)
