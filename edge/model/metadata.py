"""The metadata of a checkpoint: model, shape, labels, preprocessing. Needs no torch.

The metadata key "ufovit" of the safetensors file holds one JSON object with the fields written by `CheckpointInfo.as_json`.
A file without metadata is complete with a network file beside it; see `edge.model.network_file`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import ArtifactError, GraphError, InputError, UsageError
from calib.files import describe_foreign, open_regular, sha256_file
from calib.json_reader import LARGEST_JSON_BYTES, parse_json
from edge.images.graph_input import NO_NORMALISATION, Normalisation, input_dtype, picture_preprocess
from edge.images.preprocess import Preprocess
from edge.model.infer_shape import Shapes
from edge.model.network_file import NetworkFile, find_network_file, read_network_file
from edge.model.sizes import SHAPE_FIELDS, ImageSize, UfoVitConfig, check_image_size, image_size_text, read_config
from edge.model.weights_metadata import SCHEMA_VERSION, make_metadata, refuse_contradictions

if TYPE_CHECKING:
    import onnx

METADATA_KEY = "ufovit"
_REQUIRED = {
    "model": (str,),
    **{name: SHAPE_FIELDS[name] for name in ("image_size", "classes", "kv_axis")},
    "labels": (list,),
    "preprocess": (dict,),
}
_OPTIONAL = SHAPE_FIELDS | {"random_weights": (bool,), "training": (dict,)}


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
        size = self.config.image_size
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.config.name,
            "image_size": size if isinstance(size, int) else [*size],
            "classes": self.config.classes,
            "kv_axis": self.config.kv_axis,
            "labels": list(self.labels),
            "preprocess": self.preprocess.as_json(),
            "random_weights": self.random_weights,
            "training": self.training,
            **self.config.shape_fields(),
        }

    def for_image_size(self, image_size: ImageSize | None) -> CheckpointInfo:
        """The same network and preprocessing at another input size; None keeps it."""
        image_size = None if image_size is None else check_image_size(image_size)
        if image_size is None or image_size == self.config.image_size:
            return self
        cfg = replace(self.config, image_size=image_size)
        return replace(self, config=cfg, preprocess=self.preprocess.for_image_size(image_size))

    def require_model(self, model: str | None) -> None:
        """Raise UsageError when the checkpoint is of another model than the one asked for; None allows any."""
        if model not in (None, self.config.name):
            raise UsageError(
                "checkpoint is of another model",
                where=self.file,
                found=self.config.name,
                allowed=model,
                next_command=f"ufovit build {self.file} PRECISION",
            )


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading with numpy. Raises UsageError if it is missing, ArtifactError for any other file."""
    import safetensors

    if not path.exists():
        raise UsageError("checkpoint not found", where=path)
    with open_regular(path) as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > LARGEST_JSON_BYTES:
        raise unreadable_error(path, ValueError(f"a header of {header} bytes, up to {LARGEST_JSON_BYTES} are allowed"))
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            yield opened
    except (safetensors.SafetensorError, OSError) as error:
        raise unreadable_error(path, error) from error


def is_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors files do, whatever its name. Raises UsageError for a missing one."""
    with open_regular(path, UsageError, missing="checkpoint not found") as stream:
        return stream.read(9)[8:] == b"{"


def read_info(path: Path, network: NetworkFile | None = None) -> CheckpointInfo:
    """The metadata of a safetensors checkpoint, without its tensors. Arguments and errors as of `complete_info`."""
    with open_safetensors(path) as stream:
        stored = stream.metadata() or {}
        shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118  # no mapping
    return complete_info(stored.get(METADATA_KEY), shapes, path, network)


def complete_info(text: str | None, shapes: Shapes, path: Path, network: NetworkFile | None = None) -> CheckpointInfo:
    """The metadata of a checkpoint whose file holds `text`, None for none, and tensors of these shapes.

    Args:
        text: JSON.
        shapes: by name of the tensor.
        path: of the checkpoint.
        network: what a network file states; None for the one beside the checkpoint, if there is one.

    Raises ArtifactError for metadata that are missing or invalid, UsageError where the network file contradicts them.
    """
    beside = find_network_file(path) if network is None else None
    network = read_network_file(beside) if beside is not None else network
    if text is None and network is None:
        raise ArtifactError(
            "checkpoint does not name its model, labels and preprocessing",
            where=path,
            found=f"no {METADATA_KEY} metadata",
            next_command=f"ufovit checkpoint {path} --mean R,G,B --std R,G,B --labels FILE --out {_converted(path)}",
        )
    if text is None and network is not None:
        return parse_info(json.dumps(make_metadata(shapes, network, path)), path)
    info = parse_info(str(text), path)
    if network is not None:
        refuse_contradictions(info.config, info.preprocess, info.labels, network, path)
    return info


def _converted(path: Path) -> Path:
    """A name for what `ufovit checkpoint` writes, which is not that of the file itself."""
    other = path.with_suffix(".safetensors")
    return other if other != path else path.with_name(f"{path.stem}-ufovit.safetensors")


def unreadable_error(path: Path, error: Exception) -> ArtifactError:
    """The error for a file that is not a checkpoint."""
    with open_regular(path) as stream:
        foreign = describe_foreign(stream.read(1024))
    return ArtifactError(
        "checkpoint cannot be read: truncated, damaged or of another format",
        where=path,
        found=foreign or (str(error) or type(error).__name__).splitlines()[0][:200],
        allowed="safetensors, or a file of torch.save that holds plain tensors",
    )


def write_graph_info(model: onnx.ModelProto, info: CheckpointInfo) -> None:
    """Store the metadata in an ONNX graph, in place, without those about the training, which stay in the checkpoint."""
    metadata = {name: value for name, value in info.as_json().items() if name != "training"}
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata, sort_keys=True))


def read_graph_info(model: onnx.ModelProto, path: Path) -> CheckpointInfo | None:
    """The metadata stored in an ONNX graph; None for a graph that this toolkit did not export. Raises InputError."""
    stored = [item.value for item in model.metadata_props if item.key == METADATA_KEY]
    return parse_info(stored[0], path) if stored else None


def parse_info(text: str, path: Path) -> CheckpointInfo:
    """Validated metadata, JSON text, of the file at `path`. Raises ArtifactError."""
    metadata = parse_json(text, f"{path}, metadata {METADATA_KEY!r}")
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError("unknown checkpoint schema version", where=path, found=text[:60], allowed=SCHEMA_VERSION)
    _check_fields(metadata, path)
    labels = tuple(str(name) for name in metadata["labels"])
    try:
        shape = {name: metadata[name] for name in SHAPE_FIELDS if name in metadata}
        cfg, preprocess = read_config(metadata["model"], shape), Preprocess.from_json(metadata["preprocess"])
    except InputError as error:
        raise ArtifactError("checkpoint metadata are invalid", where=path, found=" ".join(str(error).split())) from error
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
            found=f"{image_size_text(preprocess.image_size)} and {image_size_text(cfg.image_size)} px",
        )
    return CheckpointInfo(
        config=cfg,
        labels=labels,
        preprocess=preprocess,
        random_weights=metadata.get("random_weights", False),
        training=metadata.get("training", {}),
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
    odd = next((name for name in metadata["labels"] if type(name) not in (str, int)), None)
    if odd is not None:
        raise ArtifactError("checkpoint metadata are ill-typed", where=path, found=f"labels: {odd!r}"[:80], allowed="texts")


def graph_preprocess(
    model: onnx.ModelProto, path: Path, info: CheckpointInfo | None, normalisation: Normalisation | None, command: str
) -> Preprocess:
    """The graph's own preprocessing, or the given mean and deviation at the graph's input size. Raises InputError."""
    if normalisation is None and info is not None:
        return info.preprocess
    if normalisation is None and input_dtype(model, path) == "uint8":
        normalisation = NO_NORMALISATION
    if normalisation is None:
        raise GraphError(
            "the graph does not say how its images are prepared",
            where=path,
            found="no metadata of this toolkit",
            next_command=f"{command} --mean R,G,B --std R,G,B (on the [0, 1] scale)",
        )
    return picture_preprocess(model, path, normalisation)
