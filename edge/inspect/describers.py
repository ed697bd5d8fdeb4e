"""Describe any artifact for the terminal: the file name decides which function describes it."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from calib.errors import InputError, UsageError
from calib.files import read_regular
from calib.json_reader import LARGEST_JSON_BYTES
from edge.inspect.description import Description, size_text
from edge.inspect.read_described import read_described

BY_NAME = {
    "manifest.json": ("engines.build_folder.manifest.MANIFEST_ARTIFACT", "describe_json.describe_manifest"),
    "certificate.json": (
        "edge.stability.network_certificate.NETWORK_ARTIFACT",
        "describe_certificate.describe_network",
    ),
    "xnorm.json": ("edge.inspect.describe_xnorm.FULL_CERTIFICATE", "describe_xnorm.describe_certificate"),
    "calibration.json": ("calib.calibration_table.TABLE_ARTIFACT", "describe_json.describe_table"),
    "drift.json": ("edge.drift.drift_report.DRIFT_ARTIFACT", "describe_json.describe_drift"),
    "attribution.json": ("edge.attribution.attribution_record.ATTRIBUTION_ARTIFACT", "describe_json.describe_attribution"),
    "flips.npz": ("edge.drift.pictures.PICTURES_ARTIFACT", "describe_json.describe_flips"),
    "golden.npz": ("edge.images.golden_pair.GOLDEN_ARTIFACT", "describe_json.describe_golden"),
    "export.json": ("edge.model.export_record.EXPORT_ARTIFACT", "describe_json.describe_export"),
    "import.json": ("edge.onnx_import.import_record.IMPORT_ARTIFACT", "describe_json.describe_import"),
    "fp16_plan.json": ("engines.speed_estimate.FP16_PLAN_ARTIFACT", "describe_kernels.describe_fp16_plan"),
    "measured_speed.json": ("engines.speed_estimate.MEASURED_SPEED_ARTIFACT", "describe_kernels.describe_measured_speed"),
    "speed.json": ("engines.speed_estimate.SPEED_ARTIFACT", "describe_kernels.describe_speed"),
    "steps.json": ("engines.build_folder.step_record.STEPS_ARTIFACT", "describe_json.describe_steps"),
}
"""File name -> the `Artifact` that reads it, and the function that describes its content."""
BY_SUFFIX = {
    ".onnx": "describe_onnx.describe_onnx",
    ".safetensors": "describe_binary.describe_checkpoint",
    ".engine": "describe_binary.describe_engine",
    ".ufovit": "describe_binary.describe_bundle",
    ".json": "describe_kernels.describe_trtexec",
}
"""Suffix of a file name -> the function that describes the file."""


def describe_file(path: Path) -> Description:
    """Describe a file or build folder.

    Args:
        path: a build folder, a file of BY_NAME, or a file with a suffix of BY_SUFFIX. In a build folder, it must have its
            recorded digest; elsewhere it is described as it is.

    Raises InputError for a missing or malformed file; UsageError for one of an unknown kind, listing the known ones.
    """
    if not path.exists():
        raise UsageError("file or folder not found", where=path, allowed="an existing file or folder")
    if path.name in BY_NAME and not path.is_dir():
        artifact, describe = BY_NAME[path.name]
        data, recorded = read_described(path)
        described: Description = _load(f"edge.inspect.{describe}")(_load(artifact).parse(data, path))
        return replace(described, facts={"file": size_text(len(data)), **recorded, **described.facts})
    describe = "describe_json.describe_folder" if path.is_dir() else BY_SUFFIX.get(path.suffix, "")
    if describe:
        described = _load(f"edge.inspect.{describe}")(path)
        return described
    known = ", ".join((*BY_NAME, *(f"*{suffix}" for suffix in BY_SUFFIX)))
    raise UsageError("unknown kind of artifact", where=path, found=path.name, allowed=f"a build folder, {known}")


def can_be_read(path: Path) -> bool:
    """Whether a JSON artifact of BY_NAME has the fields of its kind."""
    try:
        _load(BY_NAME[path.name][0]).parse(read_regular(path, largest=LARGEST_JSON_BYTES), path)
    except InputError:
        return False
    return True


def _load(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)
