"""WHAT the scales are: observe ranges, choose INT8 scales, write Q/DQ into a graph, explain what would not become INT8.

Public names are loaded when first used, so that `import calib` needs the standard library alone. `collect` and `lint` are
imported from the modules that bear their names, `calib.collect` and `calib.lint`: an attribute of the package cannot be
both the function and the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calib.collect import CollectConfig
    from calib.errors import EvidenceError, InputError, MissingError, UfovitError, VerdictError
    from calib.lint import Finding
    from calib.macs import count_macs
    from calib.metrics import cosine, kl, sqnr_db, top1_agreement
    from calib.observers import Histogram
    from calib.qdq import QdqInfo, insert_qdq, read_qdq, serialize
    from calib.ranges import METHODS
    from calib.scheme import QuantPlan, QuantPoint, QuantScheme, Skipped, plan_quantization
    from calib.table import CalibrationTable, TensorScale, check_table, load_table, save_table

_PUBLIC = {
    "CalibrationTable": "calib.table",
    "CollectConfig": "calib.collect",
    "EvidenceError": "calib.errors",
    "Finding": "calib.lint",
    "Histogram": "calib.observers",
    "InputError": "calib.errors",
    "METHODS": "calib.ranges",
    "MissingError": "calib.errors",
    "QdqInfo": "calib.qdq",
    "QuantPlan": "calib.scheme",
    "QuantPoint": "calib.scheme",
    "QuantScheme": "calib.scheme",
    "Skipped": "calib.scheme",
    "TensorScale": "calib.table",
    "UfovitError": "calib.errors",
    "VerdictError": "calib.errors",
    "check_table": "calib.table",
    "cosine": "calib.metrics",
    "count_macs": "calib.macs",
    "insert_qdq": "calib.qdq",
    "kl": "calib.metrics",
    "load_table": "calib.table",
    "plan_quantization": "calib.scheme",
    "read_qdq": "calib.qdq",
    "save_table": "calib.table",
    "serialize": "calib.qdq",
    "sqnr_db": "calib.metrics",
    "top1_agreement": "calib.metrics",
}

__all__ = [
    "METHODS",
    "CalibrationTable",
    "CollectConfig",
    "EvidenceError",
    "Finding",
    "Histogram",
    "InputError",
    "MissingError",
    "QdqInfo",
    "QuantPlan",
    "QuantPoint",
    "QuantScheme",
    "Skipped",
    "TensorScale",
    "UfovitError",
    "VerdictError",
    "check_table",
    "cosine",
    "count_macs",
    "insert_qdq",
    "kl",
    "load_table",
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
