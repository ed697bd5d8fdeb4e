"""Run ONNX graphs on the CPU in ONNX Runtime, and read their inner tensors: a copy in memory gets them as extra outputs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calib.errors import DataError, GraphError, MissingError
from calib.graph import index_graph, infer_types

RUN_BYTES = 1 << 28
"""Largest size of the tensors that one run returns, where a batch can be split for it."""


class TappedGraph:
    """A graph with one input, whose named tensors can be read.

    Args:
        taps: names of the tensors to read; the graph's input and its outputs are allowed.
        threads: threads of ONNX Runtime; 0 uses every core.
        where: named in errors, usually the file.
        as_written: compute node after node, nothing fused: opens in half the time, and rounds where the graph does.

    Call: array (B, ...) as the graph takes it -> {tap: array}.

    Raises GraphError for a graph with several inputs, an unknown tap and a graph that ONNX Runtime refuses, DataError for
    arrays that the graph does not take.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        taps: Sequence[str],
        *,
        threads: int = 1,
        where: object = None,
        as_written: bool = False,
    ) -> None:
        index = index_graph(model)
        if len(index.inputs) != 1:
            raise GraphError("the graph must have one input", where=where, found=", ".join(index.inputs))
        (self.source,) = index.inputs
        self.taps = tuple(taps)
        self._inner = [name for name in self.taps if name != self.source]
        unknown = [name for name in self._inner if name not in index.producers]
        if unknown:
            raise GraphError("no such tensor: the names were made for another graph", where=where, found=", ".join(unknown[:4]))
        self._session: Any = None
        if self._inner:
            self._session = _open_session(tapped(model, self._inner), threads, where, as_written=as_written)

    def __call__(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The tapped tensors of a batch."""
        tensors = {self.source: batch} if self.source in self.taps else {}
        if not self._inner:
            return tensors
        try:
            values = self._session.run(self._inner, {self.source: batch})
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            raise DataError(
                "the graph does not take these images",
                found=f"{batch.dtype} {batch.shape}: {error}",
                allowed=self._session.get_inputs()[0].shape,
            ) from error
        return {**tensors, **dict(zip(self._inner, values, strict=True))}


def measure_shapes(model: onnx.ModelProto, tensors: Iterable[str], batch: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors of a graph, measured in one run on zeros: for those that shape inference does not know.

    `batch` is the size of a free first axis of each input. Names that the graph does not compute are left out.

    Raises GraphError for an input with another free axis and for a graph that ONNX Runtime refuses, DataError for one that
    fails on zeros, MissingError without ONNX Runtime.
    """
    index = index_graph(model)
    wanted = [name for name in tensors if name in index.producers]
    session, feeds = _open_session(tapped(model, wanted), 1, None), {}
    for value in model.graph.input:
        if value.name not in index.inputs or any(t.name == value.name for t in model.graph.initializer):
            continue
        kind = value.type.tensor_type
        sides = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
        shape = [batch if at == 0 and not side else side for at, side in enumerate(sides)]
        if not all(shape):
            raise GraphError("an axis of an input is free", where=f"input {value.name}", allowed="a free first axis")
        feeds[value.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    try:
        values = session.run(wanted, feeds)
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise DataError("the graph fails on zeros", found=error) from error
    return {name: np.shape(value) for name, value in zip(wanted, values, strict=True)}


class GraphSession:
    """A graph with any number of inputs, such as a part of another one; all its outputs are computed.

    Q/DQ pairs are computed as written, never fused into integer kernels, whose sums saturate on some CPUs. Threads do not spin
    between two calls, so that many such graphs may be called in turn.

    Call: {input: array}, further entries are ignored -> {output: array}. Arguments and errors as in `TappedGraph`.
    """

    def __init__(self, model: onnx.ModelProto, *, threads: int = 1, where: object = None) -> None:
        settings = {"session.disable_quant_qdq": "1", "session.intra_op.allow_spinning": "0"}
        self._where = where
        self._session = _open_session(model, threads, where, settings)
        self._inputs = [v.name for v in self._session.get_inputs()]
        self._outputs = [v.name for v in model.graph.output]

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs."""
        try:
            values = self._session.run(self._outputs, {name: tensors[name] for name in self._inputs})
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            raise DataError("the graph does not take these tensors", where=self._where, found=error) from error
        return dict(zip(self._outputs, values, strict=True))


def tapped(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy with more outputs and nothing else: its own first, then those of `tensors` that are inner ones."""
    copy = deepcopy(model)
    declared = {v.name for v in model.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in declared)
    return copy


def _open_session(
    model: onnx.ModelProto,
    threads: int,
    where: object,
    settings: Mapping[str, str] | None = None,
    *,
    as_written: bool = False,
) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingError("onnxruntime is not installed", next_command="pip install 'ufovit-edge[build]'") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # what is kept of the results would hold the whole arena, twice as large
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised, and say the same
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise GraphError("ONNX Runtime refuses the graph", where=where, found=error) from error


def in_small_runs(
    model: onnx.ModelProto, taps: Sequence[str], batches: Iterable[NDArray[Any]], most: int = RUN_BYTES
) -> Iterator[NDArray[Any]]:
    """The batches, those whose tapped tensors would take more than `most` bytes in equal parts; a graph's fixed batch is kept.

    Shapes are inferred; a tensor whose shape is not known counts as the largest known one.
    """
    types, index = infer_types(model), index_graph(model)
    shapes = {name: types[name].shape for name in (*taps, *index.inputs) if name in types}
    fixed = any((shapes.get(name) or (None,))[0] for name in index.inputs)
    sizes = [4 * math.prod(int(size or 1) for size in shape[1:]) for shape in map(shapes.get, taps) if shape]
    per_image = sum(sizes) + max(sizes, default=0) * (len(taps) - len(sizes))
    largest = max(1, most // max(per_image, 1))
    for batch in batches:
        if fixed or len(batch) <= largest:
            yield batch
        else:
            yield from np.array_split(batch, -(-len(batch) // largest))


def check_batch(batch: NDArray[Any], images: int) -> None:
    """Raises DataError unless this is a batch of finite float32 numbers or of integers; `images` is how many came before it."""
    if (batch.dtype != np.float32 and batch.dtype.kind not in "iu") or batch.ndim < 1:
        raise DataError("not a batch of images", found=f"{batch.dtype} {batch.shape}", allowed="float32 or integers (B, ...)")
    if not np.isfinite(batch).all():
        raise DataError("NaN or infinity in the images", where=f"batch after image {images}", allowed="finite numbers")


def checked_batches(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The same batches, each checked by `check_batch` when it is requested."""
    images = 0
    for batch in batches:
        check_batch(batch, images)
        yield np.asarray(batch)
        images += len(batch)


def first_batches(batches: Iterable[NDArray[Any]], count: int) -> Iterator[NDArray[Any]]:
    """Batches with at least this many images, if there are as many."""
    for batch in batches:
        yield batch
        count -= len(batch)
        if count <= 0:
            return
