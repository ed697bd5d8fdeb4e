"""Read an ONNX file together with the files beside it that hold its weights, and digest all of them.

The location of external data is text from the file: only regular files inside the model's own folder are read, never through
`..`, an absolute path or a link that leaves the folder; see `data_files`.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import helper

from calib.errors import GraphError
from calib.files import read_regular
from calib.graph import check_model, decode_model
from calib.graph_checks import LARGEST_BYTES
from edge.onnx_import.data_files import read_beside
from edge.onnx_import.imported import Change


def read_model(path: Path) -> tuple[onnx.ModelProto, str, list[Change]]:
    """The model with all its weights inside, the SHA-256 of the file and then of its data files by name, and what was joined.

    Raises GraphError for a file that is missing or not ONNX, for weights that are missing, outside the folder or too large, and
    for all that `calib.graph_checks` refuses.
    """
    data = read_regular(path, GraphError, largest=LARGEST_BYTES)
    model = decode_model(data, path)
    digest, joined = hashlib.sha256(data), []
    external = [tensor for tensor in tensors_of(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    files: dict[str, bytes] = {}
    left = LARGEST_BYTES - len(data)
    for location in sorted({_entries(tensor, path).get("location", "") for tensor in external}):
        files[location] = read_beside(path, location, left)
        left -= len(files[location])
        digest.update(files[location])
        joined.append(Change("external_data", location, f"{len(files[location])} bytes of weights joined"))
    for tensor in external:
        _fill(tensor, files, path)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value == -1:  # how some exporters write a free size
                dim.Clear()
    check_model(model, path)
    return model, digest.hexdigest(), joined


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, those of subgraphs and of local functions included."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
        while nodes:
            for item in nodes.pop().attribute:
                yield from item.tensors
                if item.HasField("t"):
                    yield item.t
                graphs += [*item.graphs, *([item.g] if item.HasField("g") else [])]


def _entries(tensor: onnx.TensorProto, path: Path) -> dict[str, str]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(text, str) for pair in entries.items() for text in pair):
        raise GraphError("the place of external weights is not UTF-8", where=path)
    return entries


def _fill(tensor: onnx.TensorProto, files: dict[str, bytes], path: Path) -> None:
    """Move the values of an external tensor into it."""
    entries = _entries(tensor, path)
    where = f"{path}, tensor {tensor.name!s:.80}"
    data = files[entries.get("location", "")]
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", len(data) - offset))
        needed = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (ValueError, KeyError, TypeError) as error:
        raise GraphError("the place of external weights is not understood", where=where, found=f"{error!s:.200}") from error
    if min(offset, length, *tensor.dims) < 0 or offset + length > len(data) or length > needed:
        found = f"offset {offset}, length {length} in {len(data)} bytes, sizes {list(tensor.dims[:8])}"
        raise GraphError("external weights lie outside their file", where=where, found=found, allowed=f"{needed} bytes")
    tensor.raw_data = data[offset : offset + length]
    tensor.ClearField("data_location")
    del tensor.external_data[:]
