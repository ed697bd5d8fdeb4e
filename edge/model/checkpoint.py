"""Checkpoints: safetensors whose metadata say what the weights are and how images reach them.

The metadata key "ufovit" holds one JSON object: schema_version, model, image_size, classes, kv_axis, labels, preprocess,
random_weights, training. Weights may be stored in FP16; the network is always their FP32 expansion.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from calib.errors import InputError
from calib.files import atomic_path, sha256_file
from edge.model.ufo_vit import UfoVit, UfoVitConfig, config, init_weights, resize_position_embedding
from edge.preprocess import Preprocess

SCHEMA_VERSION = 1
_METADATA_KEY = "ufovit"
_LISTED = 8


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        config: shape of the network at the image size in use.
        labels: one name per class, in the order of the logits.
        preprocess: from pixels to the network's input.
        random_weights: true when the weights were drawn, not trained.
        training: free-form facts about the training (data, accuracy, command).
        file: path, empty for drawn weights.
        sha256: digest of the file, empty for drawn weights.
    """

    config: UfoVitConfig
    labels: tuple[str, ...]
    preprocess: Preprocess
    random_weights: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""


def save_checkpoint(model: UfoVit, info: CheckpointInfo, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write weights as `dtype` (FP16 by default) with their metadata, atomically."""
    tensors = {name: t.to(dtype).contiguous() for name, t in _stored(model).items()}
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "model": info.config.name,
        "image_size": info.config.image_size,
        "classes": info.config.classes,
        "kv_axis": info.config.kv_axis,
        "labels": list(info.labels),
        "preprocess": info.preprocess.as_json(),
        "random_weights": info.random_weights,
        "training": info.training,
    }
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def load_checkpoint(path: Path, *, model: str, image_size: int | None = None) -> tuple[UfoVit, CheckpointInfo]:
    """The network of a checkpoint in FP32, in eval mode, with what the file says of itself.

    Args:
        path: a .safetensors file; or a .pth/.pt file holding {"ufovit": metadata, "state_dict": tensors}, which is read with
            `weights_only=True` so that it cannot run code.
        model: the size that the caller asked for; another one in the file is refused.
        image_size: input size to use instead of the checkpoint's; the position embedding is interpolated.

    Raises InputError for a missing, truncated or foreign file, for tensors that are missing, unexpected, mis-shaped or not
    finite (each listed by name), and for metadata that contradict them.
    """
    metadata, tensors = _read(path)
    info = _info(metadata, path)
    if info.config.name != model:
        raise InputError(
            "checkpoint is of another model",
            where=path,
            found=info.config.name,
            allowed=model,
            next_command=f"ufovit build {info.config.name} ... --checkpoint {path}",
        )
    if image_size is not None and image_size != info.config.image_size:
        cfg = replace(info.config, image_size=image_size)
        info = replace(info, config=cfg, preprocess=info.preprocess.for_image_size(image_size))
        if "pos_embed" in tensors:
            tensors["pos_embed"] = resize_position_embedding(tensors["pos_embed"].float(), cfg.grid)
    network = UfoVit(info.config).eval()
    _check_tensors(_stored(network), tensors, path)
    network.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
    return network, info


def random_checkpoint(
    cfg: UfoVitConfig, labels: tuple[str, ...], preprocess: Preprocess, seed: int
) -> tuple[UfoVit, CheckpointInfo]:
    """A network with drawn weights, stamped as such: for trying the tools, never for a verdict on accuracy."""
    network = UfoVit(cfg).eval()
    init_weights(network, seed)
    return network, CheckpointInfo(cfg, labels, preprocess, random_weights=True, training={"seed": seed})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a checkpoint file."""
    if not path.is_file():
        raise InputError("checkpoint not found", where=path)
    try:
        if path.suffix in (".pth", ".pt"):
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content[_METADATA_KEY], dict(content["state_dict"])
        with safetensors.safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # no mapping: has no __iter__
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        raise InputError(
            "checkpoint cannot be read: truncated, damaged or of another format",
            where=path,
            found=str(error).splitlines()[0],
            allowed='safetensors, or .pth with {"ufovit": metadata, "state_dict": tensors} of plain tensors',
        ) from error
    if text is None:
        raise InputError(
            "checkpoint says nothing of its model, labels and preprocessing",
            where=path,
            found="no metadata key 'ufovit'",
            next_command="write it with edge.model.save_checkpoint",
        )
    return json.loads(text), tensors


def _info(metadata: dict[str, Any], path: Path) -> CheckpointInfo:
    """Validated metadata of the file at `path`."""
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            "unknown checkpoint schema version", where=path, found=metadata.get("schema_version"), allowed=SCHEMA_VERSION
        )
    try:
        cfg = config(
            metadata["model"],
            image_size=metadata["image_size"],
            classes=metadata["classes"],
            kv_axis=metadata["kv_axis"],
        )
        labels = tuple(str(name) for name in metadata["labels"])
        preprocess = Preprocess.from_json(metadata["preprocess"])
    except KeyError as error:
        raise InputError("checkpoint metadata are incomplete", where=path, found=f"no {error}") from error
    if len(labels) != cfg.classes or len(set(labels)) != len(labels):
        raise InputError(
            "labels do not match the classes",
            where=path,
            found=f"{len(labels)} labels, {len(set(labels))} different, for {cfg.classes} classes",
            allowed="one name per class, all different",
        )
    if preprocess.image_size != cfg.image_size:
        raise InputError(
            "preprocessing and network disagree on the image size",
            where=path,
            found=f"{preprocess.image_size} and {cfg.image_size} px",
        )
    return CheckpointInfo(
        config=cfg,
        labels=labels,
        preprocess=preprocess,
        random_weights=bool(metadata.get("random_weights", False)),
        training=dict(metadata.get("training", {})),
        file=str(path),
        sha256=sha256_file(path),
    )


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are missing, unexpected, mis-shaped or not finite, naming each."""
    shared = expected.keys() & found.keys()
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(n for n in found.keys() - expected.keys() if not n.endswith("num_batches_tracked")),
        "mis-shaped": sorted(
            f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}"
            for n in shared
            if found[n].shape != expected[n].shape
        ),
        "not finite": sorted(n for n in shared if not bool(torch.isfinite(found[n]).all())),
    }
    if any(problems.values()):
        lines = [f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names]
        raise InputError("checkpoint does not fit the model", where=path, found="; ".join(lines))


def _shorten(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _stored(model: UfoVit) -> dict[str, Tensor]:
    """The tensors of a checkpoint: parameters and BatchNorm statistics, without the counter that inference never reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
