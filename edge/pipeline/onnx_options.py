"""From options and the network file to what the import of an ONNX file needs: shapes, constant inputs, preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.errors import GraphError, InputError, UsageError
from edge.images.graph_input import parse_normalisation
from edge.images.preprocess import Preprocess
from edge.model.network_file import NetworkFile
from edge.pipeline.network_options import InputOptions

if TYPE_CHECKING:
    from edge.onnx_import import ImportOptions
    from edge.onnx_import.imported import ImportedFile

_PREPROCESS = ("scale", "fit", "fill", "colour")


def import_options(options: InputOptions) -> ImportOptions:
    """Parse --input-shape, --constant-input and --outputs. Raises InputError."""
    from edge.onnx_import import ImportOptions, parse_constant_input, parse_input_shape

    shapes = [parse_input_shape(text) for text in options.input_shape]
    constants = [parse_constant_input(text) for text in options.constant_input]
    for option, pairs in (("--input-shape", shapes), ("--constant-input", constants)):
        names = [str(pair[0]) for pair in pairs]
        if len(set(names)) < len(names):
            raise UsageError("an input is given twice", where=option, found=", ".join(names)[:200])
    outputs = tuple(name.strip() for text in options.outputs for name in text.split(","))
    if not all(outputs) or len(set(outputs)) < len(outputs):
        found, allowed = ",".join(outputs)[:200], "NAME,NAME,... , each once"
        raise UsageError("--outputs is not understood", where="--outputs", found=found, allowed=allowed)
    return ImportOptions(dict(shapes), dict(constants), outputs)


def preprocess_of(imported: ImportedFile, options: InputOptions, stated: NetworkFile, command: str) -> Preprocess:
    """From pixels to the input of an imported graph: options before the network file before what the input itself says.

    An error says to run `command` with --mean and --std.

    Raises GraphError for an input that is not a picture, and where nothing says how pictures are normalised; UsageError for
    fields that contradict the graph.
    """
    image = imported.image_input
    channels, height, width = _picture_sides(imported)
    fields = dict(stated.preprocess)
    fields |= {name: getattr(options, name) for name in _PREPROCESS if getattr(options, name) is not None}
    given = {"image_size": [height, width], "layout": image.layout, "dtype": image.dtype}
    for name, value in given.items():
        said = fields.get(name, value)
        if said != value and not (name == "image_size" and said == height == width):
            where = f"{stated.file}, [preprocess] {name}"
            raise UsageError("the network file contradicts the graph", where=where, found=said, allowed=value)
    fields |= {**given, "image_size": height if height == width else (height, width)}
    if channels == 1 and "colour" not in fields:
        fields["colour"] = "grey"
    if (fields.get("colour") == "grey") != (channels == 1):
        found, allowed = (
            f"colour {fields.get('colour', 'rgb')}, {channels} channels",
            "grey for one channel, rgb or bgr for three",
        )
        raise UsageError(
            "the colour order does not fit the input",
            where=f"{imported.path}, input {image.name}",
            found=found,
            allowed=allowed,
        )
    fields["resize"] = options.resize or fields.get("resize") or min(height, width)
    normalisation = parse_normalisation(options.mean, options.std)
    if normalisation is not None:
        if channels == 1 and any(len(set(values)) > 1 for values in normalisation):
            found, allowed = f"{options.mean}, {options.std}", "one number each"
            raise UsageError("the graph takes grey images", where="--mean, --std", found=found, allowed=allowed)
        fields["mean"], fields["std"] = (values[:channels] for values in normalisation)
    if image.dtype == "uint8":
        fields = {"mean": (0.0,) * channels, "std": (1.0,) * channels, **fields}
    if "mean" not in fields or "std" not in fields:
        raise GraphError(
            "the graph does not say how its images are prepared",
            where=imported.path,
            found="neither --mean and --std nor a network file with [preprocess]",
            next_command=f"{command} --mean R,G,B --std R,G,B (on the [0, 1] scale), as it was trained",
        )
    try:
        return Preprocess.from_json(fields)
    except InputError as error:  # of the values, whose origin it does not know
        used = [f"--{name}" for name in ("mean", "std", "resize", *_PREPROCESS) if getattr(options, name) is not None]
        files = [f"{stated.file}, [preprocess]"] if stated.preprocess else []
        raise error.at(" and ".join([*files, *([", ".join(used)] if used else [])]) or imported.path) from error


def _picture_sides(imported: ImportedFile) -> tuple[int, int, int]:
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
