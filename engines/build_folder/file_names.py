"""Names of the files in a build folder, in the order of the flow. Standard library only: a device verifies folders too."""

from engines.targets import TARGETS

MODEL, EXPORT, GOLDEN = "model.onnx", "export.json", "golden.npz"
IMPORT = "import.json"
CERTIFICATE, XNORM, FOLDED = "certificate.json", "xnorm.json", "model.folded.onnx"
REFINED, CALIBRATION, QUANTIZED = "model.refined.onnx", "calibration.json", "model.int8.onnx"
TYPED = "model.typed.onnx"
ENGINES = tuple(f"engine{suffix}" for suffix in sorted({target.engine_suffix for target in TARGETS.values()}))
MANIFEST = "manifest.json"
FP16_PLAN, SPEED, MEASURED_SPEED = "fp16_plan.json", "speed.json", "measured_speed.json"
DRIFT, ANSWERS, PICTURES = "drift.json", "logits.npz", "flips.npz"
ATTRIBUTION, REPORT = "attribution.json", "report.html"
RECORD = "steps.json"
"""What every step read and wrote; see `engines.build_folder.step_record`. No step writes it, so it is not in ARTIFACTS."""
SIGNATURE = "signature.json"
"""Last of ARTIFACTS although no step writes it: a build that changes anything removes files that are not of a finished step."""
ARTIFACTS = (
    *(MODEL, EXPORT, IMPORT, GOLDEN, CERTIFICATE, XNORM, FOLDED, FP16_PLAN, REFINED, CALIBRATION, QUANTIZED, TYPED, *ENGINES),
    *(MANIFEST, SPEED, MEASURED_SPEED, DRIFT, ANSWERS, PICTURES, ATTRIBUTION, REPORT, SIGNATURE),
)
CACHE = "calibration.cache"
"""TensorRT's legacy calibration cache, written by `ufovit calibrate` only."""
