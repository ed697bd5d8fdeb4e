"""The metadata of a checkpoint: model, image size, classes, labels, preprocessing. Needs no torch.

The metadata key "ufovit" of the safetensors file holds one JSON object with the fields written by `CheckpointInfo.as_json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import ArtifactError, GraphError, UsageError
from calib.files import sha256_file
from edge.images.graph_input import Normalisation, input_shape
from edge.images.preprocess import Preprocess
from edge.model.sizes import UfoVitConfig, config

if TYPE_CHECKING:
    import onnx

SCHEMA_VERSION = 1
METADATA_KEY = "ufovit"
_REQUIRED = {
    "model": (str,),
    "image_size": (int,),
    "classes": (int,),
    "kv_axis": (str,),
    "labels": (list, tuple),
    "preprocess": (dict,),
}
_OPTIONAL = {"random_weights": (bool,), "training": (dict,)}


@dataclass(frozen=True)
class CheckpointInfo:
    """The metadata of a checkpoint.

    Attributes:
        config: shape of the network at the image size in use.
        labels: one name per class, in the order of the logits.
        preprocess: from pixels to the network's input.
        random_weights: true when the weights are random, not trained.
        training: free-form facts about the training (data, accuracy, command).
        file: path, empty for random weights.
        sha256: digest of the file, empty for random weights.
    """

    config: UfoVitConfig
    labels: tuple[str, ...]
    preprocess: Preprocess
    random_weights: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""

    def as_json(self) -> dict[str, Any]:
        """The metadata as stored in the file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.config.name,
            "image_size": self.config.image_size,
            "classes": self.config.classes,
            "kv_axis": self.config.kv_axis,
            "labels": list(self.labels),
            "preprocess": self.preprocess.as_json(),
            "random_weights": self.random_weights,
            "training": self.training,
        }

    def for_image_size(self, image_size: int | None) -> CheckpointInfo:
        """The same network and preprocessing at another input size; None keeps it."""
        if image_size is None or image_size == self.config.image_size:
            return self
        cfg = replace(self.config, image_size=image_size)
        return replace(self, config=cfg, preprocess=self.preprocess.for_image_size(image_size))

    def require_model(self, model: str) -> None:
        """Raise InputError when the checkpoint is of another model than the one asked for."""
        if self.config.name != model:
            raise UsageError(
                "checkpoint is of another model",
                where=self.file,
                found=self.config.name,
                allowed=model,
                next_command=f"ufovit build {self.config.name} PRECISION --checkpoint {self.file}",
            )


def read_info(path: Path) -> CheckpointInfo:
    """The metadata of a safetensors checkpoint, without its tensors. Raises InputError."""
    import safetensors

    if not path.is_file():
        raise UsageError("checkpoint not found", where=path)
    try:
        with safetensors.safe_open(path, framework="numpy") as stream:
            stored = stream.metadata() or {}
        metadata = json.loads(stored[METADATA_KEY]) if METADATA_KEY in stored else None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise unreadable_error(path, error) from error
    if metadata is None:
        raise ArtifactError(
            "checkpoint does not name its model, labels and preprocessing",
            where=path,
            found=f"no metadata key {METADATA_KEY!r}",
            next_command="write it with edge.model.checkpoint.save_checkpoint",
        )
    return parse_info(metadata, path)


def unreadable_error(path: Path, error: Exception) -> ArtifactError:
    """The error for a file that is not a checkpoint."""
    return ArtifactError(
        "checkpoint cannot be read: truncated, damaged or of another format",
        where=path,
        found=(str(error) or type(error).__name__).splitlines()[0],
        allowed='safetensors, or .pth with {"ufovit": metadata, "state_dict": tensors} of plain tensors',
    )


def write_graph_info(model: onnx.ModelProto, info: CheckpointInfo) -> None:
    """Store the metadata in an ONNX graph, in place, without those about the training, which stay in the checkpoint."""
    metadata = {name: value for name, value in info.as_json().items() if name != "training"}
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata, sort_keys=True))


def read_graph_info(model: onnx.ModelProto, path: Path) -> CheckpointInfo | None:
    """The metadata stored in an ONNX graph; None for a graph that this toolkit did not export. Raises InputError."""
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            try:
                return parse_info(json.loads(item.value), path)
            except ValueError as error:
                raise ArtifactError("metadata of the graph cannot be read", where=path, found=error) from error
    return None


def parse_info(metadata: dict[str, Any], path: Path) -> CheckpointInfo:
    """Validated metadata of the file at `path`."""
    if not isinstance(metadata, dict) or metadata.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError("unknown checkpoint schema version", where=path, found=str(metadata)[:60], allowed=SCHEMA_VERSION)
    _check_fields(metadata, path)
    cfg = config(metadata["model"], image_size=metadata["image_size"], classes=metadata["classes"], kv_axis=metadata["kv_axis"])
    labels = tuple(str(name) for name in metadata["labels"])
    preprocess = Preprocess.from_json(metadata["preprocess"])
    if len(labels) != cfg.classes or len(set(labels)) != len(labels):
        raise ArtifactError(
            "labels do not match the classes",
            where=path,
            found=f"{len(labels)} labels, {len(set(labels))} different, for {cfg.classes} classes",
            allowed="one name per class, all different",
        )
    if preprocess.image_size != cfg.image_size:
        raise ArtifactError(
            "preprocessing and network disagree on the image size",
            where=path,
            found=f"{preprocess.image_size} and {cfg.image_size} px",
        )
    return CheckpointInfo(
        config=cfg,
        labels=labels,
        preprocess=preprocess,
        random_weights=metadata.get("random_weights", False),
        training=dict(metadata.get("training", {})),
        file=str(path),
        sha256=sha256_file(path),
    )


def _check_fields(metadata: dict[str, Any], path: Path) -> None:
    missing = [name for name in _REQUIRED if name not in metadata]
    if missing:
        raise ArtifactError("checkpoint metadata are incomplete", where=path, found=f"no {', '.join(map(repr, missing))}")
    for name, types in {**_REQUIRED, **_OPTIONAL}.items():
        if name in metadata and type(metadata[name]) not in types:  # exact: True is an int to isinstance
            raise ArtifactError(
                "checkpoint metadata are ill-typed",
                where=path,
                found=f"{name}: {metadata[name]!r}"[:80],
                allowed=" or ".join(t.__name__ for t in types),
            )


def graph_preprocess(
    model: onnx.ModelProto, path: Path, info: CheckpointInfo | None, normalisation: Normalisation | None, command: str
) -> Preprocess:
    """The graph's own preprocessing, or the given mean and deviation at the graph's input size. Raises InputError."""
    if normalisation is None:
        if info is not None:
            return info.preprocess
        raise GraphError(
            "the graph does not say how its images are prepared",
            where=path,
            found="no metadata of this toolkit",
            next_command=f"{command} --mean R,G,B --std R,G,B (on the [0, 1] scale)",
        )
    sides = input_shape(model, path)
    if len(sides) != 3 or sides[0] != 3 or sides[1] != sides[2]:
        raise GraphError(
            "the graph does not take square images", where=path, found=sides, allowed="(batch, 3, S, S) with S fixed"
        )
    return Preprocess(sides[1], sides[1], *normalisation)
