"""The shape of a UFO-ViT from the names and shapes of its tensors. Needs no torch.

dim C            last axis of pos_embed (1, N, C)
heads H          blocks.0.attn.xnorm_q.gamma (1, H, 1, 1)
depth            number of blocks.*, class layers: of cls_blocks.*
stem widths      first axes of stem.0, stem.3, stem.6, stem.9
FFN expansion    first axis of blocks.0.ffn.0 over C
classes          first axis of head
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError
from edge.model.sizes import STEM_STRIDE

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""
COMPILED = "_orig_mod."
"""What torch.compile puts before the names inside each module that it compiled."""
_ANCHOR = "pos_embed"
_GAMMA, _FFN, _HEAD = "blocks.0.attn.xnorm_q.gamma", "blocks.0.ffn.0.weight", "head.weight"
_STEM = tuple(f"stem.{i}.weight" for i in (0, 3, 6, 9))
_NEEDED = (_ANCHOR, "cls_token", *_STEM, _GAMMA, "cls_blocks.0.attn.xnorm_q.gamma", _FFN, _HEAD)


def find_prefix(names: Iterable[str]) -> str:
    """What stands before every name of a UFO-ViT, such as "module."; "" where nothing does."""
    anchors = [name for name in names if name == _ANCHOR or name.endswith(f".{_ANCHOR}")]
    return anchors[0].removesuffix(_ANCHOR) if len(anchors) == 1 else ""


def strip_prefix(names: Iterable[str]) -> dict[str, str]:
    """Names -> the same names without what `find_prefix` finds and without those of torch.compile; see `COMPILED`.

    A name that has no such prefix is kept, so that it is reported as one that does not fit. Two names that become one: the
    prefix is not stripped from them.
    """
    names = [*names]
    prefix = find_prefix(names)
    stripped = {name: name.removeprefix(prefix).replace(COMPILED, "") for name in names}
    results = Counter(stripped.values())
    return {name: new if results[new] == 1 else name for name, new in stripped.items()}


def infer_shape(shapes: Shapes, path: Path) -> dict[str, Any]:
    """Fields of `edge.model.sizes.SHAPE_FIELDS`, without kv_axis, from the tensors of the file at `path`.

    image_size is that of a square; it is missing where the number of tokens is not a square number. Raises ArtifactError for
    tensors that are not those of a UFO-ViT.
    """
    _check_names(shapes, path)
    dim = _size(shapes, _ANCHOR, 3, 2, path)
    hidden = _size(shapes, _FFN, 2, 0, path)
    if not dim or hidden % dim:
        raise _foreign_error(path, f"{_FFN} has {hidden} rows, which is not a multiple of dim {dim}")
    fields: dict[str, Any] = {
        "depth": _count(shapes, "blocks"),
        "dim": dim,
        "heads": _size(shapes, _GAMMA, 4, 1, path),
        "classes": _size(shapes, _HEAD, 2, 0, path),
        "class_layers": _count(shapes, "cls_blocks"),
        "ffn_expansion": hidden // dim,
        "stem_widths": [_size(shapes, name, 4, 0, path) for name in _STEM],
    }
    side = math.isqrt(count_tokens(shapes))
    return fields | ({"image_size": side * STEM_STRIDE} if side**2 == count_tokens(shapes) else {})


def count_tokens(shapes: Shapes) -> int:
    """Patch tokens N that the position embedding (1, N, C) is for."""
    return shapes[_ANCHOR][1]


def _check_names(shapes: Shapes, path: Path) -> None:
    prefix = find_prefix(shapes)
    if prefix or any(COMPILED in name for name in shapes):
        with_prefix = sum(name.startswith(prefix) for name in shapes)
        count = f"all {len(shapes)}" if with_prefix == len(shapes) else f"{with_prefix} of {len(shapes)}"
        found = f"{count} names begin with {prefix}" if prefix else f"names with {COMPILED}"
        raise ArtifactError(
            "names of the tensors have a prefix",
            where=path,
            found=found[:100],
            allowed=f"names such as {_ANCHOR} and {_HEAD}",
            next_command=f"ufovit checkpoint {path} --strip-prefix",
        )
    missing = [name for name in _NEEDED if name not in shapes]
    if missing:
        some = ", ".join(f"{name:.60}" for name in [*shapes][:3])
        raise _foreign_error(path, f"no {missing[0]}; {len(shapes)} tensors such as {some}" if shapes else "no tensors")


def _foreign_error(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        "not the weights of a UFO-ViT of this toolkit",
        where=path,
        found=found,
        next_command="export the network to ONNX and run: ufovit build my.onnx PRECISION",
    )


def _size(shapes: Shapes, name: str, rank: int, axis: int, path: Path) -> int:
    shape = shapes[name]
    if len(shape) != rank:
        raise _foreign_error(path, f"{name} has {len(shape)} axes instead of {rank}: {shape}"[:150])
    return shape[axis]


def _count(shapes: Shapes, modules: str) -> int:
    """Modules `modules`.0, `modules`.1, ... up to the largest number: one that is missing is reported with its tensors."""
    numbers = (re.match(rf"{modules}\.(\d{{1,6}})\.", name) for name in shapes)
    return 1 + max(int(match[1]) for match in numbers if match)
