"""From options and the network file to what the import of an ONNX file needs: shapes, constant inputs, preprocessing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calib.errors import GraphError, UsageError
from edge.images.graph_input import load_array, parse_normalisation
from edge.images.preprocess import Preprocess
from edge.pipeline.network_options import InputOptions

if TYPE_CHECKING:
    from edge.onnx_import import Imported, ImportOptions

_SHAPE = re.compile(r"[1-9][0-9]{0,8}([x,][1-9][0-9]{0,8})*")
_PREPROCESS = ("scale", "fit", "fill", "colour")


def import_options(options: InputOptions) -> ImportOptions:
    """Parse --input-shape and --constant-input. Raises InputError."""
    from edge.onnx_import import ImportOptions

    shapes = {}
    for name, text in _pairs(options.input_shape, "--input-shape", "NAME=1x3x224x224"):
        if not _SHAPE.fullmatch(text):
            allowed = "sizes of all axes, such as 1x3x224x224"
            raise UsageError("not the shape of an input", where="--input-shape", found=f"{name}={text}"[:80], allowed=allowed)
        shapes[name] = tuple(map(int, re.split("[x,]", text)))
    pairs = _pairs(options.constant_input, "--constant-input", "NAME=NUMBER or NAME=FILE.npy")
    constants = {name: _constant(text) for name, text in pairs}
    return ImportOptions(shapes, constants)


def _pairs(values: tuple[str, ...], option: str, allowed: str) -> list[tuple[str, str]]:
    """Name and text of each NAME=TEXT. Raises UsageError."""
    parts = [value.rpartition("=") for value in values]
    wrong = next((value for value, (name, _, text) in zip(values, parts, strict=True) if not name or not text), None)
    names = [name for name, _, _ in parts]
    if wrong is not None or len(set(names)) != len(names):
        found = wrong if wrong is not None else "an input twice"
        raise UsageError("not the name of an input and its value", where=option, found=found, allowed=allowed)
    return [(name, text) for name, _, text in parts]


def _constant(text: str) -> NDArray[Any]:
    if Path(text).suffix == ".npy":
        return np.array(load_array(Path(text)))
    try:
        return np.asarray(int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else float(text))
    except ValueError as error:
        allowed = "a number, or a .npy file"
        raise UsageError("not the value of an input", where="--constant-input", found=text[:80], allowed=allowed) from error


def preprocess_of(imported: Imported, options: InputOptions, stated: dict[str, Any]) -> Preprocess:
    """From pixels to the input of an imported graph: options before the network file before what the input itself says.

    Raises GraphError for an input that is not a picture, and where nothing says how pictures are normalised; UsageError for
    fields that contradict the graph.
    """
    image = imported.image_input
    channels, height, width = _picture_sides(imported)
    fields = dict(stated)
    fields |= {name: getattr(options, name) for name in _PREPROCESS if getattr(options, name) is not None}
    given = {"image_size": [height, width], "layout": image.layout, "dtype": image.dtype}
    for name, value in given.items():
        said = fields.get(name, value)
        if said != value and not (name == "image_size" and said == height == width):
            raise UsageError("the network file contradicts the graph", where=name, found=said, allowed=value)
    fields |= {**given, "image_size": height if height == width else (height, width)}
    if channels == 1 and "colour" not in fields:
        fields["colour"] = "grey"
    if (fields.get("colour") == "grey") != (channels == 1):
        found, allowed = (
            f"colour {fields.get('colour', 'rgb')}, {channels} channels",
            "grey for one channel, rgb or bgr for three",
        )
        raise UsageError("the colour order does not fit the input", where=f"input {image.name}", found=found, allowed=allowed)
    fields["resize"] = options.resize or fields.get("resize") or min(height, width)
    normalisation = parse_normalisation(options.mean, options.std)
    if normalisation is not None:
        fields["mean"], fields["std"] = (values[:channels] for values in normalisation)
    if image.dtype == "uint8":
        fields = {"mean": (0.0,) * channels, "std": (1.0,) * channels, **fields}
    if "mean" not in fields or "std" not in fields:
        raise GraphError(
            "the graph does not say how its images are prepared",
            where=imported.path,
            found="neither --mean and --std nor a network file with [preprocess]",
            next_command="--mean R,G,B --std R,G,B (on the [0, 1] scale), the values that it was trained with",
        )
    return Preprocess.from_json(fields)


def _picture_sides(imported: Imported) -> tuple[int, int, int]:
    """Channels, height and width of the image input. Raises GraphError."""
    image = imported.image_input
    sides = image.shape[1:]
    if len(sides) == 3 and None not in sides:
        channels, height, width = sides if image.layout == "nchw" else (sides[2], *sides[:2])
        if channels in (1, 3):
            return int(channels or 0), int(height or 0), int(width or 0)
    raise GraphError(
        "the network does not take pictures",
        where=f"{imported.path}, input {image.name}",
        found=image.shape,
        allowed="(batch, channels, height, width) or (batch, height, width, channels) with 1 or 3 channels",
        next_command=f"ufovit calibrate {imported.path} --images FILE.npy takes arrays of any shape",
    )
