"""INT8 calibration and quantization of ONNX graphs: observe ranges, choose scales, insert Q/DQ, lint the result.

Public names are loaded when first used, so that `import calib` needs the standard library alone.
"""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from calib.calibration_table import CalibrationTable, TensorScale, load_table, save_table
    from calib.collect import CollectConfig, collect_table
    from calib.lint.run_lint import lint_graph
    from calib.metrics import sqnr_db
    from calib.qdq_placement import QuantScheme, plan_quantization
    from calib.qdq_writer import insert_qdq, read_qdq, serialize
    from calib.quantize import CalibrateConfig, calibrate_graph, quantize_graph

__all__ = [
    "CalibrateConfig",
    "CalibrationTable",
    "CollectConfig",
    "QuantScheme",
    "TensorScale",
    "calibrate_graph",
    "collect_table",
    "insert_qdq",
    "lint_graph",
    "load_table",
    "plan_quantization",
    "quantize_graph",
    "read_qdq",
    "save_table",
    "serialize",
    "sqnr_db",
]
__getattr__ = lazy_exports(__name__, __file__)
