"""What import takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from engines.layer_records import TensorInfo

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
        outputs: tensors that become the outputs; none for those of the file.
    """

    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constant_inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


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
class ImportedFile:
    """What is known of a file that was imported, now or by an earlier build: enough to prepare and judge images for it.

    Attributes:
        path: the file as given.
        data_sha256: digest of the file, and of the files that hold its weights where there are some.
        image_input: the input of the imported graph.
        outputs: those of the imported graph.
        options: what the file was imported with.
    """

    path: Path
    data_sha256: str
    image_input: ImageInput
    outputs: tuple[TensorInfo, ...]
    options: ImportOptions


@dataclass(frozen=True)
class Imported(ImportedFile):
    """An imported file with its graph.

    Attributes:
        model: opset 20, float32, one input, fixed sizes but for a free batch, unique node names.
        opset: of the file as given.
        dtypes: element types other than float32 that the file computes in: `float16`, `bfloat16`, `float64`.
        changes: what was done, in order.
    """

    model: onnx.ModelProto
    opset: int
    dtypes: tuple[str, ...]
    changes: tuple[Change, ...]
