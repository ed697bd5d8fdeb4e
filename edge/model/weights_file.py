"""Read the tensors of a weights file: safetensors, or what torch.save wrote, recognised by content.

A pickle is read with `weights_only=True`, so that it cannot run code; what it holds besides plain data is refused, named.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from calib.errors import ArtifactError, UsageError
from calib.files import ARCHIVE_ERRORS, open_regular
from calib.json_reader import LARGEST_JSON_BYTES, check_nesting
from edge.model.metadata import METADATA_KEY, is_safetensors, open_safetensors, unreadable_error

_MOST_VALUES = 200_000
"""Of the metadata in a pickle, which can hold one list in many places."""
_TENSORS = ("state_dict", "model_state_dict", "model", "network", "net", "module", "weights", "params")
_AVERAGED = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema_state", "params_ema", "averaged")
"""Keys under which trainings store tensors, and their exponential moving averages; the first that is there counts."""
_AVERAGED_PREFIXES = ("ema.", "model_ema.", "ema_model.", "averaged.")
_COUNTER = "n_averaged"
"""Of torch's AveragedModel, beside its tensors."""
_STARTS = (b"PK", b"\x80")
"""Of an archive, and of the pickle that torch.save wrote before version 1.6."""
_LISTED = 8


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        format: how it is stored, for messages.
        tensors: by name, as stored.
        metadata: JSON text of this toolkit; None where there is none.
        key: under which the tensors were found; "" where they are the file's only content.
        averaged: whether they are the exponential moving average of the training.
        has_averaged: whether the file holds such an average besides.
    """

    format: str
    tensors: dict[str, Tensor]
    metadata: str | None = None
    key: str = ""
    averaged: bool = False
    has_averaged: bool = False


def read_weights(path: Path, *, averaged: bool = False) -> WeightsFile:
    """Read a weights file, and with `averaged` the moving average of the weights that it holds beside them.

    Raises UsageError for a missing file and a missing average; ArtifactError for any other file, in words of its own where it
    holds a program or Python objects.
    """
    if is_safetensors(path):
        with open_safetensors(path) as stream:
            stored = stream.metadata() or {}
        try:
            tensors = safetensors.torch.load_file(path)
        except Exception as error:  # of types that torch lacks, PyTorch and safetensors raise many kinds
            raise unreadable_error(path, error) from error
        return _choose(WeightsFile("safetensors", tensors, stored.get(METADATA_KEY)), tensors, averaged, path)
    try:
        _check_start(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        metadata = _as_json(content[METADATA_KEY]) if isinstance(content, dict) and METADATA_KEY in content else None
    except ArtifactError:
        raise
    except Exception as error:  # whatever the operations of a damaged pickle provoke
        raise _pickle_error(path, error) from error
    return _choose(WeightsFile("torch.save", {}, metadata), content, averaged, path)


def _choose(file: WeightsFile, content: Any, averaged: bool, path: Path) -> WeightsFile:
    """The file with its tensors, or their moving averages, which lie under a key or under names with a prefix."""
    if not isinstance(content, dict) or not content:
        found = "an empty one" if content == {} else type(content).__name__
        raise ArtifactError("the file holds no tensors by name", where=path, found=found, allowed="a state_dict")
    key, average = _first(content, _TENSORS), _first(content, _AVERAGED)
    tensors = _inner(content[key]) if key else {k: v for k, v in content.items() if k not in (METADATA_KEY, average)}
    prefixes = [p for p in _AVERAGED_PREFIXES if any(isinstance(name, str) and name.startswith(p) for name in tensors)]
    inside = {n: t for n, t in tensors.items() if prefixes and isinstance(n, str) and n.startswith(prefixes[0])}
    if len(inside) < len(tensors):  # otherwise it is the common prefix of all names
        tensors = {name: tensor for name, tensor in tensors.items() if name not in inside}
    else:
        inside = {}
    means = _inner(content[average]) if average else {name.removeprefix(prefixes[0]): t for name, t in inside.items()}
    if averaged and not means:
        found = ", ".join(f"{key!r:.40}" for key in [*content][:_LISTED])
        allowed = f"tensors under {', '.join(_AVERAGED)}"
        raise UsageError("the file holds no moving average", where="--ema", found=found, allowed=allowed)
    chosen = means if averaged else tensors
    return WeightsFile(
        file.format,
        _check_plain({name: value for name, value in chosen.items() if name != _COUNTER}, path),
        file.metadata,
        (average if averaged else key) or "",
        averaged,
        bool(means) and not averaged,
    )


def _first(content: Mapping[Any, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if isinstance(content.get(key), dict) and content[key]), None)


def _inner(content: dict[Any, Any]) -> dict[Any, Any]:
    """What lies one level further down, in {"ema": {"module": tensors, "decay": 0.999}} for instance."""
    key = _first(content, _TENSORS)
    inner: dict[Any, Any] = content[key] if key else content
    return inner


def _check_plain(tensors: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    unnamed = sorted(f"{name!r:.40}" for name in tensors if not isinstance(name, str) or not name.isprintable())
    if unnamed:
        raise ArtifactError("state_dict holds names that are not text", where=path, found=shorten(unnamed))
    foreign = sorted(name for name, value in tensors.items() if not isinstance(value, Tensor))
    if foreign:
        raise ArtifactError("state_dict holds more than tensors", where=path, found=shorten(foreign))
    return tensors


def shorten(names: list[str]) -> str:
    """The first names of a list and the number of the others."""
    rest = len(names) - _LISTED
    return ", ".join(name[:100] for name in names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _check_start(path: Path) -> None:
    """Refuse what torch.save did not write: other files, a TorchScript archive, and a compressed one, which may unpack to any
    size.
    """
    with open_regular(path) as stream:
        if not stream.read(2).startswith(_STARTS):
            raise unreadable_error(path, ValueError("neither safetensors nor a file of torch.save"))
        try:
            entries = zipfile.ZipFile(stream).infolist() if zipfile.is_zipfile(stream) else []
        except ARCHIVE_ERRORS as error:
            raise unreadable_error(path, error) from error
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        raise ArtifactError(
            "checkpoint cannot be read: a TorchScript archive, which is a program and not weights alone",
            where=path,
            next_command="save the weights in Python: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    if any(entry.file_size > entry.compress_size for entry in entries):
        raise unreadable_error(path, ValueError("a compressed archive"))


def _pickle_error(path: Path, error: Exception) -> ArtifactError:
    """The error for a file that torch did not load: which Python objects it holds, where that is the reason."""
    objects = _find_objects(path) or re.findall(r"GLOBAL ([\w.]+) was not", str(error))
    if not objects:
        told = "weights_only" not in str(error) and "Weights only" not in str(error)  # torch advises to run what it refused
        return unreadable_error(path, error if told else ValueError("a pickle that cannot be read as plain data"))
    module = any(name.startswith("torch.nn.modules.") for name in objects)
    what = "a whole pickled module, which is a program" if module else "it holds Python objects besides tensors"
    own = sorted(name for name in objects if not name.startswith("torch.")) or sorted(objects)
    return ArtifactError(
        f"checkpoint cannot be read: {what}; only weights are loaded, because loading anything else runs code",
        where=path,
        found=shorten(own),
        allowed="tensors, numbers and texts",
        next_command="save the weights where the network was trained: torch.save(network.state_dict(), 'weights.pth')",
    )


def _find_objects(path: Path) -> list[str]:
    """Names of the Python types that a zip archive of torch.save needs beyond tensors; empty where they cannot be told."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001  # whatever a damaged pickle provokes; the caller knows that the file cannot be loaded
        return []


def _as_json(metadata: object) -> str:
    """Metadata out of a pickle as the JSON text that a safetensors file holds: nothing else passes, in any size."""
    check_nesting(metadata, _MOST_VALUES)
    text = StringIO()
    for part in json.JSONEncoder().iterencode(metadata):
        if text.tell() > LARGEST_JSON_BYTES:
            raise ValueError("metadata that are too large")
        text.write(part)
    return text.getvalue()
