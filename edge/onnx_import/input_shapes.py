"""Inputs: defaults and given values become constants, free axes get their sizes, and one input remains, the image."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calib.errors import GraphError, UsageError
from edge.onnx_import.imported import Change, ImageInput, ImportOptions

BATCH = "batch"
_CHANNELS = (1, 3)


def fix_inputs(model: onnx.ModelProto, options: ImportOptions, path: Path) -> tuple[ImageInput, list[Change]]:
    """Leave one input, with fixed sizes but for a free batch, and state what it is.

    Raises UsageError for options that name no input or do not fit it, GraphError for inputs and axes that are left open, naming
    the option to give, and for inputs and outputs that are not tensors.
    """
    graph = model.graph
    changes = _defaults_to_constants(graph)
    model.ir_version = max(model.ir_version, 4)  # the first that allows initializers which are not inputs
    _check_tensors(graph, path)
    inputs = {value.name: value for value in graph.input}
    for option, names in (("--input-shape", options.input_shapes), ("--constant-input", options.constant_inputs)):
        unknown = sorted(set(names) - set(inputs))
        if unknown:
            what = f"{option} names an input that the graph does not have"
            raise UsageError(what, where=path, found=unknown[0][:80], allowed=", ".join(inputs)[:400])
    for name, value in options.constant_inputs.items():
        changes.append(_to_constant(graph, inputs[name], value, options.input_shapes.get(name)))
    if len(graph.input) != 1:
        raise _open_inputs_error(graph, path)
    (image,) = graph.input
    changes += _pin_axes(image, options.input_shapes.get(image.name), path)
    return _describe(image, path), changes


def _defaults_to_constants(graph: onnx.GraphProto) -> list[Change]:
    """Initializers that are listed as inputs: defaults, which no caller of this flow replaces."""
    stored = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    kept = [value for value in graph.input if value.name not in stored]
    changes = [
        Change("default", value.name, "default of an input taken as a constant")
        for value in graph.input
        if value.name in stored
    ]
    if changes:
        del graph.input[:]
        graph.input.extend(kept)
    return changes


def _check_tensors(graph: onnx.GraphProto, path: Path) -> None:
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in (None, "tensor_type"):
                found, allowed = f"{value.name[:80]} is a {str(kind).removesuffix('_type')}", "tensors"
                command = "leave it out with --outputs NAME,..., or export without it"
                if kind in ("sequence_type", "map_type"):
                    command += " (skl2onnx: options={'zipmap': False})"
                raise GraphError(
                    f"an {what} of the graph is not a tensor", where=path, found=found, allowed=allowed, next_command=command
                )
    for value in graph.input:
        if value.type.tensor_type.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            raise GraphError("an input of the graph has no numeric element type", where=path, found=value.name[:80])
        if not value.type.tensor_type.HasField("shape"):
            raise GraphError(
                "an input of the graph declares no shape", where=path, found=value.name[:80], next_command="export with one"
            )


def _to_constant(
    graph: onnx.GraphProto, value: onnx.ValueInfoProto, given: NDArray[Any], pinned: tuple[int, ...] | None
) -> Change:
    """Replace an input by an initializer of its own element type; the batch axis, where it is free, has size 1."""
    kind = value.type.tensor_type
    option = f"--constant-input {value.name}"
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    array = np.asarray(given)
    if array.ndim == 0:
        shape = [
            size if size is not None else (pinned[i] if pinned and i < len(pinned) else None) for i, size in enumerate(sizes)
        ]
        if shape and shape[0] is None:
            shape[0] = 1
        if None in shape:
            what, command = "a number needs the sizes of the input that it fills", f"--input-shape {value.name}=SIZES"
            raise UsageError(what, where=option, found=_text(sizes), next_command=command)
        array = np.full([int(size or 1) for size in shape], array)
    if array.ndim == len(sizes) and sizes[0] is None and len(array) > 1 and (array == array[:1]).all():
        array = array[:1]
    fits = array.ndim == len(sizes) and all(
        size in (None, given_size) for size, given_size in zip(sizes, array.shape, strict=True)
    )
    if not fits or (sizes and sizes[0] is None and len(array) != 1):
        found = f"{array.dtype} {array.shape}"
        raise UsageError(
            "the value does not fit the input", where=option, found=found, allowed=f"{dtype} {_text(sizes)}, one for all images"
        )
    if array.dtype.kind not in "biuf" or not np.isfinite(array.astype(np.float64)).all():
        raise UsageError("the value is not finite numbers", where=option, found=str(array.dtype), allowed=str(dtype))
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    if not np.array_equal(converted.astype(np.float64), array.astype(np.float64)) and dtype.kind != "f":
        raise UsageError("the value does not fit the input's type", where=option, found=str(array.dtype), allowed=str(dtype))
    graph.initializer.append(numpy_helper.from_array(converted, value.name))
    kept = [other for other in graph.input if other.name != value.name]
    del graph.input[:]
    graph.input.extend(kept)
    return Change("constant_input", value.name, f"fixed to {converted.dtype} {list(converted.shape)}")


def _open_inputs_error(graph: onnx.GraphProto, path: Path) -> GraphError:
    inputs = [f"{value.name} {_type_name(value)} {_text(_sizes(value))}" for value in graph.input]
    images = [value for value in graph.input if len(value.type.tensor_type.shape.dim) == 4]
    others = [value.name for value in graph.input if len(images) != 1 or value is not images[0]]
    if not inputs:
        return GraphError("the graph has no input left that could take an image", where=path)
    command = " ".join(f"--constant-input {name}=FILE.npy" for name in others[:4]) + " (a number fills the whole input)"
    what = "only one input may vary, the image: give the others a value"
    return GraphError(what, where=path, found="; ".join(inputs)[:600], next_command=command)


def _pin_axes(image: onnx.ValueInfoProto, pinned: tuple[int, ...] | None, path: Path) -> list[Change]:
    """Give free axes their sizes, in place; a free batch gets a name."""
    dims, sizes = image.type.tensor_type.shape.dim, _sizes(image)
    example = "x".join(str(size or {0: 1, 1: 3}.get(i, 224)) for i, size in enumerate(sizes))
    option = f"--input-shape {image.name}={example}"
    if pinned is not None:
        fits = len(pinned) == len(sizes) and all(s in (None, p) for s, p in zip(sizes, pinned, strict=True))
        if not fits:
            found = "x".join(map(str, pinned))
            raise UsageError(
                "--input-shape does not fit the input", where=f"{path}, {image.name}", found=found, allowed=_text(sizes)
            )
    open_axes = [i for i, size in enumerate(sizes) if size is None and i > 0]
    if open_axes and pinned is None:
        axes = ", ".join(f"axis {i} ({dims[i].dim_param or 'unnamed'})" for i in open_axes)
        what = "the graph leaves sizes of its input free"
        raise GraphError(what, where=f"{path}, {image.name}", found=axes, allowed="only a free batch", next_command=option)
    changes = []
    for i in open_axes:
        dims[i].dim_value = (pinned or ())[i]
        changes.append(Change("input_shape", image.name, f"axis {i} fixed to {dims[i].dim_value}"))
    if sizes and sizes[0] is None:
        dims[0].dim_param = BATCH
    return changes


def _describe(image: onnx.ValueInfoProto, path: Path) -> ImageInput:
    sizes = _sizes(image)
    if len(sizes) < 2:
        found = f"{image.name} {_type_name(image)} {_text(sizes)}"
        raise GraphError(
            "the input of the graph is not a batch", where=path, found=found, allowed="2 axes or more, the batch first"
        )
    nhwc = len(sizes) == 4 and sizes[3] in _CHANNELS and sizes[1] not in _CHANNELS
    layout: Literal["nchw", "nhwc"] = "nhwc" if nhwc else "nchw"
    return ImageInput(image.name, _type_name(image), layout, tuple(sizes))


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _type_name(value: onnx.ValueInfoProto) -> str:
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)))


def _text(sizes: list[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "a scalar"
