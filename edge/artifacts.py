"""Names of the files in a build folder, in the order of the flow. `engines.artifacts` has them: a device verifies too."""

from __future__ import annotations

from engines.artifacts import (
    ARTIFACTS,
    ATTRIBUTION,
    CALIBRATION,
    DRIFT,
    ENGINES,
    EXPORT,
    FLIPS,
    FOLDED,
    GOLDEN,
    LOGITS,
    MANIFEST,
    MODEL,
    QUANTIZED,
    REFINED,
    REPORT,
    SIGNATURE,
    TYPED,
    XNORM,
)

__all__ = [
    "ARTIFACTS",
    "ATTRIBUTION",
    "CACHE",
    "CALIBRATION",
    "DRIFT",
    "ENGINES",
    "EXPORT",
    "FLIPS",
    "FOLDED",
    "GOLDEN",
    "LOGITS",
    "MANIFEST",
    "MODEL",
    "QUANTIZED",
    "REFINED",
    "REPORT",
    "SIGNATURE",
    "TYPED",
    "XNORM",
]

CACHE = "calibration.cache"
"""TensorRT's legacy table, which `ufovit calibrate` writes and a build does not."""
