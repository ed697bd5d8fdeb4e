"""WHAT the scales are: observe ranges, choose INT8 scales, write Q/DQ into a graph, explain what would not become INT8.

Public names are loaded when first used, so that `import calib` needs the standard library alone. `collect` and `lint` are
imported from the modules that bear their names, `calib.collect` and `calib.lint`: an attribute of the package cannot be
both the function and the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calib.budget import BudgetResult, FloatGroup, Trial, drop_points, fit_budget
    from calib.calibration_table import CalibrationTable, RangeShift, TensorScale, check_table, load_table, save_table
    from calib.calibrators import METHODS
    from calib.collect import CollectConfig
    from calib.errors import EvidenceError, InputError, MissingError, UfovitError, VerdictError
    from calib.histogram import Histogram
    from calib.lint import Finding
    from calib.macs import count_macs
    from calib.metrics import kl, sqnr_db, top1_agreement
    from calib.qdq_placement import QuantPlan, QuantPoint, QuantScheme, Skipped, plan_quantization
    from calib.qdq_writer import QdqInfo, insert_qdq, read_qdq, serialize
    from calib.sensitivity import GroupCost, Sensitivity, group_nodes, measure_sensitivity

_PUBLIC = {
    "BudgetResult": "calib.budget",
    "CalibrationTable": "calib.calibration_table",
    "CollectConfig": "calib.collect",
    "EvidenceError": "calib.errors",
    "Finding": "calib.lint",
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
    "check_table": "calib.calibration_table",
    "count_macs": "calib.macs",
    "drop_points": "calib.budget",
    "fit_budget": "calib.budget",
    "group_nodes": "calib.sensitivity",
    "insert_qdq": "calib.qdq_writer",
    "kl": "calib.metrics",
    "load_table": "calib.calibration_table",
    "measure_sensitivity": "calib.sensitivity",
    "plan_quantization": "calib.qdq_placement",
    "read_qdq": "calib.qdq_writer",
    "save_table": "calib.calibration_table",
    "serialize": "calib.qdq_writer",
    "sqnr_db": "calib.metrics",
    "top1_agreement": "calib.metrics",
}

__all__ = [
    "METHODS",
    "BudgetResult",
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
    "check_table",
    "count_macs",
    "drop_points",
    "fit_budget",
    "group_nodes",
    "insert_qdq",
    "kl",
    "load_table",
    "measure_sensitivity",
    "plan_quantization",
    "read_qdq",
    "save_table",
    "serialize",
    "sqnr_db",
    "top1_agreement",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'calib' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
