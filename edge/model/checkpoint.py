"""Checkpoints: safetensors whose metadata name the network and its preprocessing; see `edge.model.metadata`.

Weights may be stored in FP16; the network is always their FP32 expansion.
"""

import json
import zipfile
from io import StringIO
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from calib.errors import ArtifactError, UsageError
from calib.files import open_regular, write_bytes
from calib.json_reader import LARGEST_JSON_BYTES, check_nesting
from edge.model.metadata import METADATA_KEY, CheckpointInfo, parse_info, read_info, unreadable_error
from edge.model.sizes import UfoVitConfig
from edge.model.ufo_vit import UfoVit, init_weights, resize_position_embedding

_LISTED = 8
_MOST_VALUES = 200_000
"""Of the metadata in a pickle, which can hold one list in many places."""


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
        except Exception as error:  # of types that torch lacks, PyTorch and safetensors raise many kinds
            raise unreadable_error(path, error) from error
    if not path.exists():
        raise UsageError("checkpoint not found", where=path)
    try:
        _refuse_compression(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        metadata, tensors = _as_json(content[METADATA_KEY]), dict(content["state_dict"])
    except ArtifactError:
        raise
    except Exception as error:  # whatever the operations of a damaged pickle provoke
        raise unreadable_error(path, error) from error
    unnamed = sorted(f"{name!r:.40}" for name in tensors if not isinstance(name, str) or not name.isprintable())
    if unnamed:
        raise ArtifactError("state_dict holds names that are not text", where=path, found=_shorten(unnamed))
    foreign = sorted(name for name, value in tensors.items() if not isinstance(value, Tensor))
    if foreign:
        raise ArtifactError("state_dict holds more than tensors", where=path, found=_shorten(foreign))
    return parse_info(metadata, path), tensors


def _refuse_compression(path: Path) -> None:
    """Refuse a compressed archive, which torch does not write and which may unpack to any size."""
    with open_regular(path) as stream:
        if zipfile.is_zipfile(stream) and any(e.file_size > e.compress_size for e in zipfile.ZipFile(stream).infolist()):
            raise ValueError("a compressed archive")


def _as_json(metadata: object) -> str:
    """Metadata out of a pickle as the JSON text that a safetensors file holds: nothing else passes, in any size."""
    check_nesting(metadata, _MOST_VALUES)
    text = StringIO()
    for part in json.JSONEncoder().iterencode(metadata):
        if text.tell() > LARGEST_JSON_BYTES:
            raise ValueError("metadata that are too large")
        text.write(part)
    return text.getvalue()


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are missing, unexpected, not numbers side by side, mis-shaped or not finite, naming each."""
    shared = expected.keys() & found.keys()
    dense = {n for n in shared if _is_dense(found[n])}
    fitting = {n for n in dense if found[n].shape == expected[n].shape}
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(n for n in found.keys() - expected.keys() if not n.endswith("num_batches_tracked")),
        "not dense numbers of floating point": sorted(
            f"{n} {found[n].dtype} {found[n].layout}".replace("torch.", "") for n in shared - dense
        ),
        "mis-shaped": sorted(f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}" for n in dense - fitting),
        "not finite": sorted(n for n in fitting if not bool(torch.isfinite(found[n].float()).all())),
    }
    if any(problems.values()):
        lines = [f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names]
        raise ArtifactError("checkpoint does not fit the model", where=path, found="; ".join(lines))


def _is_dense(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    return plain and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _shorten(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(name[:100] for name in names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _stored(model: UfoVit) -> dict[str, Tensor]:
    """The tensors of a checkpoint: parameters and BatchNorm statistics, without the counter that inference never reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
