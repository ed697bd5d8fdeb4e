"""Read input, outputs and batch sizes of a TensorRT engine, and split images into batches that it takes."""

from dataclasses import dataclass
from typing import Any

from calib.errors import ArtifactError, DataError

_TYPES = {"FLOAT": "float32", "UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
"""TensorRT's name of a type -> numpy's."""


@dataclass(frozen=True)
class PortType:
    """The name of an input or output tensor of an engine, and its numpy type."""

    name: str
    dtype: str


@dataclass(frozen=True)
class EngineIo:
    """The one input of an engine and its outputs.

    Attributes:
        input: (B, *image_shape).
        outputs: (B, ...) each, in the order of the engine.
        image_shape: of one image, such as (3, S, S).
        batches: smallest, optimal and largest B.
    """

    input: PortType
    outputs: tuple[PortType, ...]
    image_shape: tuple[int, ...]
    batches: tuple[int, int, int]


def read_io(module: Any, engine: Any, profile: int) -> EngineIo:
    """Input and outputs of a deserialized engine under an optimization profile.

    Raises ArtifactError for an engine without outputs or with other than one input, for tensors of other types than _TYPES or
    not in plain row order, and for an input with a dynamic dimension besides the batch.
    """
    names = [str(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
    outputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.OUTPUT]
    if len(inputs) != 1 or not outputs or len(names) != 1 + len(outputs):
        raise ArtifactError(
            "the engine must have one input, and outputs",
            found=f"inputs: {', '.join(inputs) or 'none'}; outputs: {', '.join(outputs) or 'none'}",
        )
    ports = {name: PortType(name, _dtype(module, engine, name)) for name in names}
    (name,) = inputs
    fixed = engine.get_tensor_shape(name)
    dynamic = any(int(d) < 0 for d in fixed)
    triple = engine.get_tensor_profile_shape(name, profile) if dynamic else (fixed, fixed, fixed)
    shapes = [tuple(int(d) for d in shape) for shape in triple]
    if len({shape[1:] for shape in shapes}) != 1 or len(shapes[0]) < 2:
        raise ArtifactError(
            "the engine's input has a dynamic dimension besides the batch", where=name, found=" / ".join(map(str, shapes))
        )
    smallest, optimal, largest = (shape[0] for shape in shapes)
    return EngineIo(ports[name], tuple(ports[n] for n in outputs), shapes[0][1:], (smallest, optimal, largest))


def _dtype(module: Any, engine: Any, name: str) -> str:
    """The numpy type of a tensor. Raises ArtifactError for another one than _TYPES, or another layout than rows."""
    dtype, layout = engine.get_tensor_dtype(name), engine.get_tensor_format(name)
    known = {
        getattr(module.DataType, word): numpy_name for word, numpy_name in _TYPES.items() if hasattr(module.DataType, word)
    }
    if dtype not in known:
        allowed = ", ".join(known.values())
        raise ArtifactError("the engine's tensor is of a type that cannot be read", where=name, found=dtype, allowed=allowed)
    if layout != module.TensorFormat.LINEAR:
        raise ArtifactError("the engine's tensor is not in row order", where=name, found=layout, allowed="LINEAR")
    return known[dtype]


def split(images: int, smallest: int, largest: int) -> list[int]:
    """Sizes of the fewest batches that hold all images, each as large as the smallest size of the following ones permits.

    Raises DataError where no batches of `smallest` to `largest` images add up to them.
    """
    count = -(-images // largest)
    if images < count * smallest:
        raise DataError(
            "the engine's batch sizes do not add up to this number of images",
            found=images,
            allowed=f"{smallest} to {largest} images, or what splits into such batches",
            next_command="ufovit build MODEL PRECISION --batch MIN,OPT,MAX",
        )
    sizes: list[int] = []
    for following in range(count - 1, -1, -1):
        sizes.append(min(largest, images - sum(sizes) - following * smallest))
    return sizes
