"""Metadata for weights that have none: the shape from the tensors, all else from a network file. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calib.errors import UsageError
from edge.images.preprocess import Preprocess
from edge.model.infer_shape import Shapes, count_tokens, infer_shape
from edge.model.network_file import NetworkFile
from edge.model.sizes import STEM_STRIDE, UfoVitConfig, check_image_size, image_size_text, name_shape

SCHEMA_VERSION = 1
_NEEDED = ("mean", "std")


def make_metadata(shapes: Shapes, network: NetworkFile, path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, as `CheckpointInfo.as_json` writes them, for the tensors of the file at `path`.

    Labels that are not stated are the numbers of the classes. Raises ArtifactError for tensors of another network; UsageError
    for a field that contradicts them, and where the network file lacks what the tensors cannot tell: mean, std, and the image
    size of a rectangle.
    """
    fields = {"kv_axis": "contraction", **network_shape(shapes, network, path)}
    missing = [name for name in _NEEDED if name not in network.preprocess]
    if missing:
        raise UsageError(
            "the weights do not say how images are prepared",
            where=network.file or path,
            found=f"no {' and no '.join(missing)}",
            next_command="pass --mean R,G,B --std R,G,B (on the [0, 1] scale), or write them under [preprocess]",
        )
    sides = fields["image_size"] if isinstance(fields["image_size"], list) else [fields["image_size"]]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": name_shape(fields),
        "labels": [*network.labels] or [str(number) for number in range(fields["classes"])],
        "preprocess": {"image_size": fields["image_size"], "resize": min(sides), **network.preprocess},
        **fields,
    }


def network_shape(shapes: Shapes, network: NetworkFile, path: Path) -> dict[str, Any]:
    """Fields of `SHAPE_FIELDS` from the tensors and the network file. Raises ArtifactError and UsageError."""
    inferred = infer_shape(shapes, path)
    stated = {name: value for name, value in network.network.items() if name != "image_size"}
    for name, value in stated.items():
        if name in inferred and inferred[name] != value:
            raise _contradiction_error(name, value, inferred[name], network, path)
    size, tokens = network.network.get("image_size", inferred.get("image_size")), count_tokens(shapes)
    if size is None:
        raise UsageError(
            "the weights do not tell the image size",
            where=path,
            found=f"a position embedding of {tokens} tokens, which is not a square number",
            allowed=f"[network] image_size = [height, width], of height * width = {tokens * STEM_STRIDE**2}",
            next_command=f"ufovit checkpoint {path} --image-size HEIGHTxWIDTH",
        )
    checked = check_image_size(size if isinstance(size, int) else (*size,))
    height, width = (checked, checked) if isinstance(checked, int) else checked
    if height * width != tokens * STEM_STRIDE**2:
        found = f"a position embedding of {tokens} tokens, {height * width // STEM_STRIDE**2} for {height}x{width} px"
        raise UsageError(
            "image size does not fit the weights",
            where=network.file or path,
            found=found,
            next_command="state the size of the training here; ufovit build --image-size resizes it",
        )
    return inferred | stated | {"image_size": checked if isinstance(checked, int) else [*checked]}


def refuse_contradictions(
    cfg: UfoVitConfig, preprocess: Preprocess, labels: tuple[str, ...], network: NetworkFile, path: Path
) -> None:
    """Raise UsageError, naming the field, where a network file states something else than the metadata of a checkpoint."""
    own: Mapping[str, Any] = {**vars(cfg), "stem_widths": cfg.widths}
    for name, value in network.network.items():
        given = check_image_size(value if isinstance(value, int) else (*value,)) if name == "image_size" else _plain(value)
        if given != own[name]:
            raise _contradiction_error(name, value, own[name], network, path)
    for name, value in network.preprocess.items():
        if _plain(value) != getattr(preprocess, name):
            raise _contradiction_error(name, value, getattr(preprocess, name), network, path)
    if network.labels and network.labels != labels:
        first = next((n for n, pair in enumerate(zip(network.labels, labels, strict=False)) if len({*pair}) == 2), None)
        found = f"{len(network.labels)} labels for {len(labels)}" if first is None else f"{network.labels[first]:.60}"
        raise _contradiction_error("labels", found, labels[first or 0], network, path)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _contradiction_error(name: str, stated: Any, own: Any, network: NetworkFile, path: Path) -> UsageError:
    text = image_size_text(own) if name == "image_size" else own
    return UsageError(
        f"{name} contradicts the checkpoint",
        where=network.file or f"--{name.replace('_', '-')}",
        found=f"{stated!r}"[:80],
        allowed=f"{text!s:.80}, as {path.name} has it",
        next_command=f"leave {name} out, or correct it",
    )
