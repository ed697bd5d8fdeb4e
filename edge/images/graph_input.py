"""Images as a graph takes them, for commands that work on any ONNX file: preprocessed pictures, or arrays as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calib.errors import DataError, GraphError, UsageError
from calib.files import sha256_bytes, sha256_file
from edge.images.idx import Int64
from edge.images.labelled_images import open_images, open_unlabelled, spread_evenly
from edge.images.npz import read_header
from edge.images.preprocess import Colour, DType, Float32, Layout, Preprocess, Tensor

if TYPE_CHECKING:
    import onnx


Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation per channel, on the [0, 1] scale."""
NO_NORMALISATION: Normalisation = (0.0,) * 3, (1.0,) * 3


@dataclass(frozen=True)
class GraphImages:
    """Images, ready for a graph.

    Attributes:
        source: where they come from, as messages name it.
        sha256: digest of their content.
        preprocess_sha256: digest of their preprocessing; "" for arrays taken as they are.
        read: positions (n,) -> (n, ...), of the type that the graph takes.
        chosen: the positions that make up this set.
        labels: int64, one per position of `chosen`, None where there are none.
        synthetic: random numbers, not images.
        notes: what was left out of the set, a sentence each.
        largest_batch: largest number of images at a time, for a graph of a fixed batch; None for any number.
    """

    source: str
    sha256: str
    preprocess_sha256: str
    read: Callable[[Int64], Tensor]
    chosen: Int64
    labels: Int64 | None = None
    synthetic: bool = False
    largest_batch: int | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def batches(self, size: int) -> Iterator[Tensor]:
        """The images in order, `size` or `largest_batch` at a time. Raises InputError for NaN and infinities, image named."""
        size = min(size, self.largest_batch or size)
        for start in range(0, len(self), size):
            positions = self.chosen[start : start + size]
            batch = self.read(positions)
            bad = first_not_finite(batch)
            if bad is not None:
                raise DataError(
                    "NaN or infinity in the images",
                    where=self.source,
                    found=f"image {positions[bad]}, counted from 0",
                    allowed="finite numbers",
                )
            yield batch

    def take(self, count: int) -> GraphImages:
        """`count` images spread evenly over the set, or all of them: the same ones every time."""
        return self if count >= len(self) else self._part(spread_evenly(len(self), count))

    def without(self, count: int) -> GraphImages:
        """The images that `take(count)` leaves."""
        return self._part(np.delete(np.arange(len(self)), spread_evenly(len(self), count)))

    def _part(self, positions: Int64) -> GraphImages:
        digest = sha256_bytes(self.sha256.encode() + positions.tobytes())
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, sha256=digest, chosen=self.chosen[positions], labels=labels)


def first_not_finite(values: NDArray[Any]) -> int | None:
    """The first row of (n, ...) that holds NaN or infinity."""
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def from_array(path: Path, labels: Path | None = None) -> GraphImages:
    """A .npy file of float32 or integers (N, ...), exactly what the graph takes; `labels` a .npy file of N class indices."""
    array, classes = load_array(path), None if labels is None else load_array(labels)
    taken = array.dtype == np.float32 or (array.dtype.kind in "iu" and array.dtype.isnative)
    if not taken or array.ndim < 2 or not len(array):
        found, allowed = f"{array.dtype} {array.shape}", "float32, uint8 or integers (N, ...)"
        raise DataError("not an array of images", where=path, found=found, allowed=allowed)
    if classes is not None and (classes.shape != (len(array),) or classes.dtype.kind not in "iu"):
        raise DataError(
            "labels do not fit the images",
            where=labels,
            found=f"{classes.dtype} {classes.shape}",
            allowed=f"integers ({len(array)},)",
        )
    known = None if classes is None else classes.astype(np.int64)
    return GraphImages(str(path), sha256_file(path), "", lambda at: np.asarray(array[at]), np.arange(len(array)), known)


def made_up(count: int, shape: tuple[int, ...], seed: int = 0) -> GraphImages:
    """`count` arrays of a normal distribution: good for trying the tools, not for a statement about a network."""

    def read(positions: Int64) -> Float32:
        return np.stack([np.random.default_rng((seed, int(i))).standard_normal(shape, np.float32) for i in positions])

    digest = sha256_bytes(f"normal {count} {shape} {seed}".encode())
    return GraphImages(f"{count} made-up images", digest, "", read, np.arange(count), synthetic=True)


def open_graph_images(
    path: Path, preprocess: Callable[[], Preprocess], *, classes: tuple[str, ...] | None = None, labels: Path | None = None
) -> GraphImages:
    """Images at a path: a .npy file, or pictures (a folder, an image, an IDX file; with `classes`, labelled ones).

    Raises InputError for a path without images, and what `preprocess` raises where pictures have to be prepared.
    """
    if path.suffix == ".npy":
        return from_array(path, labels)
    pictures = open_unlabelled(path) if classes is None else open_images(path, classes)
    prepare = preprocess()

    def read(positions: Int64) -> Tensor:
        return np.stack([prepare(pictures.pixels(int(i))) for i in positions])

    known = None if classes is None else pictures.labels
    chosen = np.arange(len(pictures))
    return GraphImages(pictures.source, pictures.sha256, prepare.sha256, read, chosen, known, notes=pictures.notes)


def input_shape(model: onnx.ModelProto, path: Path) -> tuple[int, ...]:
    """Shape of one image as the graph takes it, without the batch. Raises InputError for free sides or several inputs."""
    sides = _input_sides(model, path)[1:]
    if not sides or not all(d.dim_value for d in sides):
        found = ", ".join(str(d.dim_value or d.dim_param or "?") for d in sides)
        raise GraphError(
            "the graph's input has no fixed size",
            where=path,
            found=f"(batch, {found})" if sides else "no shape",
            allowed="all sides but the batch fixed",
            next_command="--input-shape NAME=1x3x224x224 fixes the sizes of the input NAME",
        )
    return tuple(d.dim_value for d in sides)


def _input_sides(model: onnx.ModelProto, path: Path) -> Sequence[Any]:
    sides: Sequence[Any] = _image_input(model, path).type.tensor_type.shape.dim
    return sides


def _image_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """The one input that is not an initializer."""
    constants = {tensor.name for tensor in model.graph.initializer}
    images = [value for value in model.graph.input if value.name not in constants]
    if len(images) != 1:
        raise GraphError("the graph must have one input", where=path, found=", ".join(v.name for v in images))
    image: onnx.ValueInfoProto = images[0]
    return image


def picture_preprocess(model: onnx.ModelProto, path: Path, normalisation: Normalisation) -> Preprocess:
    """The preprocessing of pictures for a graph: size, layout, channels and type as its input says, nothing cut off.

    A graph of uint8 normalises inside and takes pixels as they are. Raises GraphError for an input that is not a picture.
    """
    sides, kind = input_shape(model, path), input_dtype(model, path)
    layout: Layout = "nhwc" if len(sides) == 3 and sides[0] not in (1, 3) else "nchw"
    channels, *size = sides if layout == "nchw" else (sides[-1], *sides[:-1])
    if len(sides) != 3 or channels not in (1, 3) or kind not in ("float32", "uint8"):
        allowed = "float32 or uint8 (batch, C, H, W) or (batch, H, W, C), C 1 or 3, H and W fixed"
        raise GraphError("the graph does not take pictures", where=path, found=f"{kind} {sides}", allowed=allowed)
    if channels == 1 and any(len(set(part)) > 1 for part in normalisation):
        found = f"{normalisation[0]}, {normalisation[1]}"
        raise UsageError("the graph takes grey images", where="--mean, --std", found=found, allowed="one number each")
    mean, std = (part[:channels] for part in (NO_NORMALISATION if kind == "uint8" else normalisation))
    dtype: DType = "uint8" if kind == "uint8" else "float32"
    colour: Colour = "rgb" if channels == 3 else "grey"
    height, width = size
    return Preprocess((height, width), min(size), mean, std, layout=layout, colour=colour, dtype=dtype)


def input_dtype(model: onnx.ModelProto, path: Path) -> str:
    """numpy's name of the type of the images that the graph takes. Raises GraphError for several inputs."""
    from onnx.helper import tensor_dtype_to_np_dtype

    return str(tensor_dtype_to_np_dtype(_image_input(model, path).type.tensor_type.elem_type).name)


def fixed_batch(model: onnx.ModelProto, path: Path) -> int | None:
    """1 for a graph that takes one image at a time, None for any number. Raises InputError for a fixed batch above 1."""
    batch: int = _input_sides(model, path)[0].dim_value
    if batch > 1:
        raise GraphError(
            "the graph takes a fixed number of images at a time",
            where=path,
            found=batch,
            allowed="a free batch, or one image",
            next_command="export it with a free batch",
        )
    return batch or None


def parse_normalisation(mean: str | None, std: str | None) -> Normalisation | None:
    """`--mean` and `--std`, both or neither. Raises InputError."""
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together", where="--mean, --std", found=f"mean {mean}, std {std}")
    return None if mean is None or std is None else (parse_triple(mean, "--mean"), parse_triple(std, "--std"))


def parse_triple(text: str, option: str) -> tuple[float, float, float]:
    """Three numbers from "R,G,B", or from one for all. Raises InputError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError("not numbers", where=option, found=repr(text), allowed="R,G,B, or one number for all") from error
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise UsageError("not three numbers", where=option, found=repr(text), allowed="R,G,B, or one number for all")
    first, second, third = values if len(values) == 3 else values * 3
    return first, second, third


def load_array(path: Path) -> NDArray[Any]:
    """A .npy file of numbers, mapped. Raises DataError."""
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        with path.open("rb") as stream:
            read_header(stream, path.stat().st_size)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise DataError("array cannot be read", where=path, found=error.strerror or error, allowed="a .npy file") from error
    except ValueError as error:
        what = "not a .npy file of numbers, or a truncated one"
        raise DataError(what, where=path, found=error, allowed="a .npy file") from error
