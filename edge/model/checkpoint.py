"""Checkpoints: safetensors whose metadata name the network and its preprocessing; see `edge.model.metadata`.

Weights may be stored in FP16; the network is always their FP32 expansion.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from calib.errors import ArtifactError
from calib.files import write_bytes
from edge.model.metadata import METADATA_KEY, CheckpointInfo, complete_info
from edge.model.network_file import NetworkFile
from edge.model.sizes import ImageSize, UfoVitConfig
from edge.model.ufo_vit import UfoVit, init_weights, resize_position_embedding
from edge.model.weights_file import read_weights, shorten

_COUNTER = "num_batches_tracked"
"""Of a BatchNorm, which inference never reads."""


def save_checkpoint(model: UfoVit, info: CheckpointInfo, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write weights as `dtype` (FP16 by default) with their metadata, atomically."""
    save_tensors({name: t.to(dtype) for name, t in _stored(model).items()}, info, path)


def save_tensors(tensors: Mapping[str, Tensor], info: CheckpointInfo, path: Path) -> None:
    """Write tensors as they are with their metadata, atomically."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {METADATA_KEY: json.dumps(info.as_json(), sort_keys=True)}
    write_bytes(path, safetensors.torch.save(contiguous, metadata))  # save_file would hide a full disk in an error of its own


def load_checkpoint(
    path: Path, *, model: str | None = None, image_size: ImageSize | None = None, network: NetworkFile | None = None
) -> tuple[UfoVit, CheckpointInfo]:
    """The network of a checkpoint in FP32, in eval mode, with its metadata.

    Args:
        path: a file of weights, as `edge.model.weights_file` reads them. A pickle with metadata is {"ufovit": metadata,
            "state_dict": tensors}.
        model: the model that the caller expects; another one in the file is refused. None expects any.
        image_size: input size to use instead of the checkpoint's; the position embedding is interpolated.
        network: what a network file states; None for the one beside the checkpoint, if there is one.

    Raises InputError for a missing, truncated or foreign file, for tensors that are missing, unexpected, mis-shaped or not
    finite (each listed by name), and for metadata that contradict them.
    """
    weights = read_weights(path)
    info = complete_info(weights.metadata, shapes_of(weights.tensors), path, network)
    info.require_model(model)
    resized = info.for_image_size(image_size)
    tensors = check_tensors(info.config, weights.tensors, path)
    embed = tensors["pos_embed"].float()
    tensors["pos_embed"] = resize_position_embedding(embed, info.config.grid, resized.config.grid)
    loaded = UfoVit(resized.config).eval()
    loaded.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
    return loaded, resized


def random_network(cfg: UfoVitConfig, seed: int) -> UfoVit:
    """A network with random weights, in eval mode: for trying the tools, never for a verdict on accuracy."""
    network = UfoVit(cfg).eval()
    init_weights(network, seed)
    return network


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_tensors(cfg: UfoVitConfig, found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a network of this shape, none allocated.

    Raises ArtifactError for tensors that are missing, unexpected, not numbers side by side, mis-shaped or not finite, naming
    each.
    """
    with torch.device("meta"):
        expected = _stored(UfoVit(cfg))
    shared = expected.keys() & found.keys()
    dense = {n for n in shared if _is_dense(found[n])}
    fitting = {n for n in dense if found[n].shape == expected[n].shape}
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(n for n in found.keys() - expected.keys() if not n.endswith(_COUNTER)),
        "not dense numbers of floating point": sorted(
            f"{n} {found[n].dtype} {found[n].layout}".replace("torch.", "") for n in shared - dense
        ),
        "mis-shaped": sorted(f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}" for n in dense - fitting),
        "not finite": sorted(n for n in fitting if not bool(torch.isfinite(found[n].float()).all())),
    }
    if any(problems.values()):
        lines = [f"{kind}: {shorten(names)}" for kind, names in problems.items() if names]
        raise ArtifactError("checkpoint does not fit the model", where=path, found="; ".join(lines))
    return {name: found[name] for name in expected}


def _is_dense(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    return plain and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _stored(model: UfoVit) -> dict[str, Tensor]:
    """The tensors of a checkpoint: parameters and BatchNorm statistics."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith(_COUNTER)}
