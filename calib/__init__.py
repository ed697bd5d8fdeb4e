"""WHAT the scales are: observe ranges, choose INT8 scales, write Q/DQ into a graph, explain what would not become INT8.

Public names are loaded when first used, so that `import calib` needs the standard library alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from calib.budget import BudgetResult, FloatGroup, Trial, drop_points, fit_budget
    from calib.calibration_table import CalibrationTable, RangeShift, TensorScale, check_table, load_table, save_table
    from calib.calibrators import METHODS
    from calib.collect import CollectConfig, collect_table
    from calib.errors import EvidenceError, InputError, MissingError, UfovitError, VerdictError
    from calib.histogram import Histogram
    from calib.lint.finding import Finding
    from calib.lint.run_lint import lint_graph
    from calib.macs import count_macs
    from calib.metrics import kl, sqnr_db, top1_agreement
    from calib.qdq_placement import QuantPlan, QuantPoint, QuantScheme, Skipped, plan_quantization
    from calib.qdq_writer import QdqInfo, insert_qdq, read_qdq, serialize
    from calib.quantize import CalibrateConfig, calibrate_graph, quantize_graph
    from calib.sensitivity import GroupCost, Sensitivity, group_nodes, measure_sensitivity

_PUBLIC = {
    "BudgetResult": "calib.budget",
    "CalibrateConfig": "calib.quantize",
    "CalibrationTable": "calib.calibration_table",
    "CollectConfig": "calib.collect",
    "EvidenceError": "calib.errors",
    "Finding": "calib.lint.finding",
    "FloatGroup": "calib.budget",
    "GroupCost": "calib.sensitivity",
    "Histogram": "calib.histogram",
    "InputError": "calib.errors",
    "METHODS": "calib.calibrators",
    "MissingError": "calib.errors",
    "QdqInfo": "calib.qdq_writer",
    "QuantPlan": "calib.qdq_placement",
    "QuantPoint": "calib.qdq_placement",
    "QuantScheme": "calib.qdq_placement",
    "RangeShift": "calib.calibration_table",
    "Sensitivity": "calib.sensitivity",
    "Skipped": "calib.qdq_placement",
    "TensorScale": "calib.calibration_table",
    "Trial": "calib.budget",
    "UfovitError": "calib.errors",
    "VerdictError": "calib.errors",
    "calibrate_graph": "calib.quantize",
    "check_table": "calib.calibration_table",
    "collect_table": "calib.collect",
    "count_macs": "calib.macs",
    "drop_points": "calib.budget",
    "fit_budget": "calib.budget",
    "group_nodes": "calib.sensitivity",
    "insert_qdq": "calib.qdq_writer",
    "kl": "calib.metrics",
    "lint_graph": "calib.lint.run_lint",
    "load_table": "calib.calibration_table",
    "measure_sensitivity": "calib.sensitivity",
    "plan_quantization": "calib.qdq_placement",
    "quantize_graph": "calib.quantize",
    "read_qdq": "calib.qdq_writer",
    "save_table": "calib.calibration_table",
    "serialize": "calib.qdq_writer",
    "sqnr_db": "calib.metrics",
    "top1_agreement": "calib.metrics",
}

__all__ = [
    "METHODS",
    "BudgetResult",
    "CalibrateConfig",
    "CalibrationTable",
    "CollectConfig",
    "EvidenceError",
    "Finding",
    "FloatGroup",
    "GroupCost",
    "Histogram",
    "InputError",
    "MissingError",
    "QdqInfo",
    "QuantPlan",
    "QuantPoint",
    "QuantScheme",
    "RangeShift",
    "Sensitivity",
    "Skipped",
    "TensorScale",
    "Trial",
    "UfovitError",
    "VerdictError",
    "calibrate_graph",
    "check_table",
    "collect_table",
    "count_macs",
    "drop_points",
    "fit_budget",
    "group_nodes",
    "insert_qdq",
    "kl",
    "lint_graph",
    "load_table",
    "measure_sensitivity",
    "plan_quantization",
    "quantize_graph",
    "read_qdq",
    "save_table",
    "serialize",
    "sqnr_db",
    "top1_agreement",
]
__getattr__ = lazy_exports(__name__, _PUBLIC)
