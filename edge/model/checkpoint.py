"""Checkpoints: safetensors whose metadata name the network and its preprocessing; see `edge.model.metadata`.

Weights may be stored in FP16; the network is always their FP32 expansion.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from calib.errors import ArtifactError, UsageError
from calib.files import write_bytes
from edge.model.metadata import METADATA_KEY, CheckpointInfo, parse_info, read_info, unreadable_error
from edge.model.sizes import UfoVitConfig
from edge.model.ufo_vit import UfoVit, init_weights, resize_position_embedding

_LISTED = 8


def save_checkpoint(model: UfoVit, info: CheckpointInfo, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write weights as `dtype` (FP16 by default) with their metadata, atomically."""
    tensors = {name: t.to(dtype).contiguous() for name, t in _stored(model).items()}
    metadata = {METADATA_KEY: json.dumps(info.as_json(), sort_keys=True)}
    write_bytes(path, safetensors.torch.save(tensors, metadata))  # save_file would hide a full disk in an error of its own


def load_checkpoint(path: Path, *, model: str, image_size: int | None = None) -> tuple[UfoVit, CheckpointInfo]:
    """The network of a checkpoint in FP32, in eval mode, with its metadata.

    Args:
        path: a .safetensors file; or a .pth/.pt file holding {"ufovit": metadata, "state_dict": tensors}, which is read with
            `weights_only=True` so that it cannot run code.
        model: the size that the caller expects; another one in the file is refused.
        image_size: input size to use instead of the checkpoint's; the position embedding is interpolated.

    Raises InputError for a missing, truncated or foreign file, for tensors that are missing, unexpected, mis-shaped or not
    finite (each listed by name), and for metadata that contradict them.
    """
    info, tensors = _read(path)
    info.require_model(model)
    resized = info.for_image_size(image_size)
    with torch.device("meta"):
        _check_tensors(_stored(UfoVit(info.config)), tensors, path)
    tensors["pos_embed"] = resize_position_embedding(tensors["pos_embed"].float(), resized.config.grid)
    network = UfoVit(resized.config).eval()
    network.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
    return network, resized


def random_network(cfg: UfoVitConfig, seed: int) -> UfoVit:
    """A network with random weights, in eval mode: for trying the tools, never for a verdict on accuracy."""
    network = UfoVit(cfg).eval()
    init_weights(network, seed)
    return network


def _read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """The metadata of a checkpoint file, and its tensors as stored."""
    if path.suffix not in (".pth", ".pt"):
        info = read_info(path)
        try:
            return info, safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise unreadable_error(path, error) from error
    if not path.is_file():
        raise UsageError("checkpoint not found", where=path)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        metadata, tensors = content[METADATA_KEY], dict(content["state_dict"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise unreadable_error(path, error) from error
    foreign = sorted(str(name) for name, value in tensors.items() if not isinstance(value, Tensor))
    if foreign:
        raise ArtifactError("state_dict holds more than tensors", where=path, found=_shorten(foreign))
    return parse_info(metadata, path), tensors


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
        raise ArtifactError("checkpoint does not fit the model", where=path, found="; ".join(lines))


def _shorten(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _stored(model: UfoVit) -> dict[str, Tensor]:
    """The tensors of a checkpoint: parameters and BatchNorm statistics, without the counter that inference never reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
