"""Give weights of any training the metadata of a checkpoint, after checking that they are those of a UFO-ViT."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calib.files import sha256_file
from edge.model.checkpoint import check_tensors, shapes_of
from edge.model.infer_shape import strip_prefix
from edge.model.metadata import CheckpointInfo, complete_info
from edge.model.network_file import NetworkFile
from edge.model.sizes import SHAPE_FIELDS, read_config
from edge.model.weights_file import WeightsFile, read_weights
from edge.model.weights_metadata import network_shape


@dataclass(frozen=True)
class Weights:
    """Weights whose names and shapes are those of a UFO-ViT.

    Attributes:
        file: what they were read from.
        tensors: by the names that the network has.
        shape: fields of `edge.model.sizes.SHAPE_FIELDS`.
    """

    file: WeightsFile
    tensors: dict[str, Tensor]
    shape: dict[str, Any]


def open_weights(
    path: Path, network: NetworkFile, *, model: str | None = None, strip: bool = False, averaged: bool = False
) -> Weights:
    """Read weights and tell their shape.

    Args:
        path: a file as `edge.model.weights_file` reads them.
        network: what is known of it; what contradicts the tensors is refused.
        model: one of SIZES that the shape must be.
        strip: remove the prefix of the names.
        averaged: take the moving average of the weights.

    Raises InputError for an unreadable file, and for tensors that do not fit: the first reason, by name.
    """
    file = read_weights(path, averaged=averaged)
    names = strip_prefix(file.tensors) if strip else {name: name for name in file.tensors}
    tensors = {names[name]: tensor for name, tensor in file.tensors.items()}
    shapes = shapes_of(tensors)
    if file.metadata is None:
        shape = network_shape(shapes, network, path)
    else:
        cfg = complete_info(file.metadata, shapes, path, network).config
        shape = {name: getattr(cfg, name) for name in SHAPE_FIELDS} | {"stem_widths": cfg.widths}
    if model is not None:
        read_config(model, shape)
    return Weights(file, tensors, shape)


def make_checkpoint(weights: Weights, network: NetworkFile, path: Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Tensors and metadata, as `edge.model.checkpoint.save_tensors` writes them.

    FP16 tensors stay FP16 where all are; any others become FP32. Raises InputError for tensors that do not fit, and for what
    the network file lacks or contradicts.
    """
    info = complete_info(weights.file.metadata, shapes_of(weights.tensors), path, network)
    tensors = check_tensors(info.config, weights.tensors, path)
    half = all(tensor.dtype == torch.float16 for tensor in tensors.values())
    source = {"source": path.name, "source_sha256": sha256_file(path), "source_key": weights.file.key}
    if weights.file.averaged:
        source["weights"] = "moving average"
    training = info.training or source
    return {n: t if half else t.float() for n, t in tensors.items()}, replace(info, training=training)
