"""Names of the files in a build folder, in the order of the flow."""

from __future__ import annotations

from calib.table import REFINED as REFINED  # noqa: PLC0414  # said twice: a re-export
from engines.manifest import MANIFEST as MANIFEST  # noqa: PLC0414  # said twice: a re-export
from engines.targets import TARGETS

MODEL, EXPORT = "model.onnx", "export.json"
XNORM, FOLDED = "xnorm.json", "model.folded.onnx"
CALIBRATION, QUANTIZED, TYPED = "calibration.json", "model.int8.onnx", "model.typed.onnx"
CACHE = "calibration.cache"
DRIFT, LOGITS, REPORT = "drift.json", "logits.npz", "report.html"
ENGINES = tuple(f"engine{suffix}" for suffix in sorted({target.engine_suffix for target in TARGETS.values()}))
ARTIFACTS = (MODEL, EXPORT, XNORM, FOLDED, REFINED, CALIBRATION, QUANTIZED, TYPED, *ENGINES, MANIFEST, DRIFT, LOGITS, REPORT)
