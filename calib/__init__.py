"""WHAT the scales are: observe ranges, choose INT8 scales, write Q/DQ into a graph, explain what would not become INT8.

Public names are loaded when first used, so that `import calib` needs the standard library alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from calib.budget import BudgetResult, BudgetTrial, FloatGroup, drop_points, fit_budget
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

_PUBLIC = by_name(
    {
        "calib.budget": ("BudgetResult", "BudgetTrial", "FloatGroup", "drop_points", "fit_budget"),
        "calib.calibration_table": ("CalibrationTable", "RangeShift", "TensorScale", "check_table", "load_table", "save_table"),
        "calib.calibrators": ("METHODS",),
        "calib.collect": ("CollectConfig", "collect_table"),
        "calib.errors": ("EvidenceError", "InputError", "MissingError", "UfovitError", "VerdictError"),
        "calib.histogram": ("Histogram",),
        "calib.lint.finding": ("Finding",),
        "calib.lint.run_lint": ("lint_graph",),
        "calib.macs": ("count_macs",),
        "calib.metrics": ("kl", "sqnr_db", "top1_agreement"),
        "calib.qdq_placement": ("QuantPlan", "QuantPoint", "QuantScheme", "Skipped", "plan_quantization"),
        "calib.qdq_writer": ("QdqInfo", "insert_qdq", "read_qdq", "serialize"),
        "calib.quantize": ("CalibrateConfig", "calibrate_graph", "quantize_graph"),
        "calib.sensitivity": ("GroupCost", "Sensitivity", "group_nodes", "measure_sensitivity"),
    }
)

__all__ = [
    "METHODS",
    "BudgetResult",
    "BudgetTrial",
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
