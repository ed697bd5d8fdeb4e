"""Checkpoints: safetensors whose metadata say what the weights are and how images reach them.

The metadata key "ufovit" holds one JSON object: schema_version, model, image_size, classes, kv_axis, labels, preprocess,
random_weights, training. Weights may be stored in FP16; the network is always their FP32 expansion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
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


def _stored(model: UfoVit) -> dict[str, Tensor]:
    """The tensors of a checkpoint: parameters and BatchNorm statistics, without the counter that inference never reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
