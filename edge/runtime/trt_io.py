"""Read input, output and batch sizes of a TensorRT engine, and split images into batches that it takes."""

from dataclasses import dataclass
from typing import Any

from calib.errors import ArtifactError, DataError


@dataclass(frozen=True)
class EngineIo:
    """The one input and the one output of an engine.

    Attributes:
        input: name of the input tensor, float32 (B, *image_shape).
        output: name of the output tensor, float32 (B, ...).
        image_shape: of one image, (3, S, S).
        batches: smallest, optimal and largest B.
    """

    input: str
    output: str
    image_shape: tuple[int, ...]
    batches: tuple[int, int, int]


def read_io(module: Any, engine: Any, profile: int) -> EngineIo:
    """Input and output of a deserialized engine under an optimization profile.

    Raises ArtifactError for an engine with other tensors than one float32 input and one float32 output in plain row order, or
    with a dynamic dimension besides the batch.
    """
    names = [str(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
    outputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.OUTPUT]
    if len(inputs) != 1 or len(outputs) != 1 or len(names) != 2:
        raise ArtifactError(
            "the engine must have one input and one output",
            found=f"inputs: {', '.join(inputs) or 'none'}; outputs: {', '.join(outputs) or 'none'}",
        )
    for name in names:
        dtype, layout = engine.get_tensor_dtype(name), engine.get_tensor_format(name)
        if dtype != module.DataType.FLOAT:
            raise ArtifactError("the engine's tensor is not float32", where=name, found=dtype, allowed="float32")
        if layout != module.TensorFormat.LINEAR:
            raise ArtifactError("the engine's tensor is not in row order", where=name, found=layout, allowed="LINEAR")
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
    return EngineIo(name, outputs[0], shapes[0][1:], (smallest, optimal, largest))


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
