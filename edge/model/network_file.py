"""The network file: a TOML file beside a model, with what the model's own file does not hold.

    task = "classify"
    labels = "labels.txt"           # one per line, beside this file; or ["cat", "dog"]
    [network]                       # of a UFO-ViT without metadata: depth, dim, heads, image_size, stem_widths, ...
    image_size = [320, 192]         # height, width
    [preprocess]                    # fields of `edge.images.preprocess.Preprocess`
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]

Needs neither torch nor onnx.
"""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from calib.errors import UsageError
from calib.files import describe_foreign, read_regular
from calib.json_reader import check_nesting
from edge.images.preprocess import Preprocess
from edge.model.sizes import SHAPE_FIELDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NETWORK_SUFFIX = ".toml"
_LARGEST_BYTES = 1 << 20
_TOP = {"network": (dict,), "preprocess": (dict,), "labels": (str, list), "task": (str,)}
_PREPROCESS = tuple(f.name for f in fields(Preprocess))
_LONG_KEY = re.compile(r"""(?:\.[ \t]*(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*){32}""")
"""A dotted key of more than 32 parts: the parser's memory grows with their square, to gigabytes in a small file."""
_MOST_NUMBERS = 16
"""In one list of a table."""


@dataclass(frozen=True)
class NetworkFile:
    """What a network file states; what it leaves out is empty, or None.

    Attributes:
        network: fields of `edge.model.sizes.SHAPE_FIELDS`, of the types stated there.
        preprocess: fields of `Preprocess`: numbers, texts and lists of them; `Preprocess` checks the values.
        labels: one name per class, in the order of the logits; all different.
        task: name of a task as `--task` takes it; the task registry checks it.
        file: its path, as messages name it.
    """

    network: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    task: str | None = None
    file: str = ""


def find_network_file(model: Path) -> Path | None:
    """The network file beside a model (`my.onnx`, `my.pth.tar` -> `my.toml`), None where there is none."""
    name = model.name.removesuffix(".tar")
    path = model.with_name(name).with_suffix(NETWORK_SUFFIX) if name.strip(".") else model
    return path if path != model and path.is_file() else None


def read_network_file(path: Path) -> NetworkFile:
    """Read a network file. Raises UsageError for one that is missing, not TOML, or has unknown or ill-typed keys, by name."""
    content = _parse(path)
    _refuse_unknown(content, _TOP, path, "")
    for name, types in _TOP.items():
        if name in content and type(content[name]) not in types:
            raise _ill_typed_error(path, name, content[name], types)
    network, preprocess = content.get("network", {}), content.get("preprocess", {})
    _refuse_unknown(network, SHAPE_FIELDS, path, "[network] ")
    _refuse_unknown(preprocess, _PREPROCESS, path, "[preprocess] ")
    for name, value in network.items():
        if type(value) not in SHAPE_FIELDS[name] or not _is_plain(value):
            raise _ill_typed_error(path, f"[network] {name}", value, SHAPE_FIELDS[name])
    for name, value in preprocess.items():
        if not _is_plain(value):
            raise _ill_typed_error(path, f"[preprocess] {name}", value, (int, float, str, list))
    stored = content.get("labels", [])
    labels = read_labels(path.parent / stored) if isinstance(stored, str) else check_labels(stored, path)
    return NetworkFile(network, preprocess, labels, content.get("task"), str(path))


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels from a text file in UTF-8, one per line, in the order of the logits. Raises UsageError."""
    data = read_regular(path, UsageError, largest=_LARGEST_BYTES, missing="label file not found")
    data = data.removeprefix(b"\xef\xbb\xbf")  # some editors of Windows write it
    foreign = describe_foreign(data)
    if foreign is not None:
        raise UsageError("not a file of labels", where=path, found=foreign, allowed="text in UTF-8, one label per line")
    try:
        lines = data.decode().rstrip().split("\n")
    except UnicodeDecodeError as error:
        allowed = "text in UTF-8, one label per line"
        raise UsageError("not a file of labels", where=path, found=str(error)[:80], allowed=allowed) from error
    return check_labels([line.strip() for line in lines], path)


def check_labels(labels: Iterable[Any], where: object) -> tuple[str, ...]:
    """The labels, if they are texts, none empty and none twice. Raises UsageError, naming the first that is not."""
    known: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not isinstance(label, str) or not label:
            found = f"{label!r}"[:60] if label != "" else "an empty one"
            raise UsageError("label is not a text", where=f"{where}, label {number}", found=found, allowed="texts, none empty")
        if label in known:
            found = f"{label[:60]!r}, which is label {known[label]} too"
            raise UsageError("label stands twice", where=f"{where}, label {number}", found=found, allowed="all different")
        known[label] = number
    return tuple(known)


def _parse(path: Path) -> dict[str, Any]:
    data = read_regular(path, UsageError, largest=_LARGEST_BYTES, missing="network file not found")
    foreign = describe_foreign(data) if data.strip() else None  # an empty file states nothing, which is allowed
    try:
        if foreign is not None:
            raise ValueError(foreign)
        text = data.decode()
        if _LONG_KEY.search(text):
            raise ValueError("a key of more than 32 parts")
        content: dict[str, Any] = tomllib.loads(text)
        check_nesting(content)
    except (ValueError, RecursionError) as error:  # of TOML and of UTF-8
        found = "too deeply nested" if isinstance(error, RecursionError) else str(error)[:200]
        raise UsageError("not a TOML file", where=path, found=found, allowed="TOML in UTF-8") from error
    return content


def _is_plain(value: Any) -> bool:
    """A text, a finite number, or a short list of such numbers."""
    if isinstance(value, list):
        return len(value) <= _MOST_NUMBERS and all(isinstance(item, int | float) and _is_plain(item) for item in value)
    return type(value) in (int, str) or (type(value) is float and math.isfinite(value))


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], path: Path, prefix: str) -> None:
    unknown = [name for name in table if name not in known]
    if unknown:
        found = ", ".join(f"{prefix}{name}"[:60] for name in unknown[:5])
        raise UsageError("unknown key in the network file", where=path, found=found, allowed=prefix + ", ".join(known))


def _ill_typed_error(path: Path, name: str, value: Any, types: tuple[type, ...]) -> UsageError:
    names = {int: "a whole number", float: "a finite number", str: "a text", list: "a list of numbers", dict: "a table"}
    return UsageError(
        "ill-typed value in the network file",
        where=path,
        found=f"{name} = {value!r}"[:80],
        allowed=" or ".join(names[kind] for kind in types),
    )
