"""What import takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

CHECK_IMAGES = 8
"""Images on which rewriters and the finished graph are checked: thousands of values each, for every kind of operator a run."""


@dataclass(frozen=True)
class ImportOptions:
    """What a file leaves open.

    Attributes:
        input_shapes: input -> sizes of all its axes, the batch first. They fill free axes and agree with fixed ones; a free
            batch stays free, whatever is given for it.
        constant_inputs: input -> its value in every run; a single number fills the input's shape. Only the image varies.
    """

    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constant_inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One thing that import did: its kind (`opset`, `folded`, `widened` ...), the node or tensor, and what became of it."""

    kind: str
    node: str
    detail: str


@dataclass(frozen=True)
class ImageInput:
    """The input that varies: its name, element type, where its channels are, and its sizes; None is a free batch."""

    name: str
    dtype: str
    layout: Literal["nchw", "nhwc"]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Imported:
    """An imported file.

    Attributes:
        model: opset 20, float32, one input, fixed sizes but for a free batch, unique node names.
        path: the file as given.
        data_sha256: digest of the file, and of the files that hold its weights where there are some.
        opset: of the file as given.
        dtypes: element types other than float32 that the file computes in: `float16`, `bfloat16`, `float64`.
        changes: what was done, in order.
        image_input: the input of `model`.
        options: what the file was imported with.
    """

    model: onnx.ModelProto
    path: Path
    data_sha256: str
    opset: int
    dtypes: tuple[str, ...]
    changes: tuple[Change, ...]
    image_input: ImageInput
    options: ImportOptions
