"""ONNX file -> the graph that the rest of the flow understands: the passes, in order.

read        the file and its external weights; every tensor computed once and before it is read; outputs as the options say
inline      local functions
inputs      defaults and given values become constants, free axes get their sizes
widen       FP16 and BF16 to FP32
convert     to opset 20
batch       free where every image gets the answers that it gets alone, else fixed
fold        constants, and what depends on shapes alone; an If whose condition is then a constant is replaced by its branch, and
            a sequence whose elements are then known by operators on tensors
narrow      FP64 to FP32, after its constants were computed in FP64
clean       nodes that return their input, names, shapes of outputs, whatever a machine wrote about itself
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from calib.graph import opset_version
from edge.onnx_import.batch_axis import BatchAxis, check_batch, free_batch
from edge.onnx_import.constant_folding import fold_constants, measure_fixed
from edge.onnx_import.control_flow import take_branches
from edge.onnx_import.external_data import read_model
from edge.onnx_import.graph_edit import all_graphs, prune
from edge.onnx_import.graph_order import name_nodes, order_nodes
from edge.onnx_import.imported import Change, Imported, ImportOptions
from edge.onnx_import.input_shapes import fix_inputs
from edge.onnx_import.local_functions import inline_functions
from edge.onnx_import.measured_run import MeasuredRun
from edge.onnx_import.named_outputs import refuse_sized_by_values, take_outputs
from edge.onnx_import.no_ops import remove_no_ops
from edge.onnx_import.opset import OPSET, to_opset_20
from edge.onnx_import.resize_scales import sizes_to_scales
from edge.onnx_import.sequences import refuse_sequences, unpack_sequences
from edge.onnx_import.tensor_shapes import declare_shapes
from edge.onnx_import.widen_to_fp32 import DOUBLE, HALF, other_float_types, widen
from engines.layer_requests import tensor_info

_MOST_ROUNDS = 8
"""Of folding and taking branches: each enters one more level of nested If nodes."""

_FOLDED_FIRST = 14
"""Before this opset nodes are folded before they are converted: Softmax (13) ran over all later axes, so that its conversion
needs ranks; BatchNormalization (14) of a constant weight, as standardized weights are written, has no other form."""


def import_onnx(path: Path, options: ImportOptions) -> Imported:
    """Read an ONNX file of opset 7 or later into an opset 20 FP32 graph with one input.

    Raises GraphError for a file that cannot be used, naming node or tensor, and UsageError for options that do not fit it; see
    the passes.
    """
    model, digest, changes = read_model(path)
    opset = opset_version(model)
    changes += [*order_nodes(model, path), *take_outputs(model, options.outputs, path)]
    model, inlined = inline_functions(model, path)
    image, fixed = fix_inputs(model, options, path)
    changes += [*inlined, *fixed]
    prune(model)
    name_nodes(model)
    dtypes = other_float_types(model)
    # FP64 that comes with the image is narrowed at once: ONNX Runtime has few FP64 kernels
    changes += widen(model, {**HALF, **DOUBLE} if image.dtype == "float64" else HALF)
    image = replace(image, dtype="float32") if image.dtype in dtypes else image
    if opset >= _FOLDED_FIRST:
        model = _convert(model, path, changes)
    batch = check_batch(model, image, path)
    changes += [*batch.changes, *_fold(model, batch, path, batch.runs)]
    if opset < _FOLDED_FIRST:
        model = _convert(model, path, changes)
        changes += _fold(model, batch, path)
    refuse_sequences(model, path)
    refuse_sized_by_values(model, path)
    changes += widen(model, DOUBLE)
    fixed_batch, batch = batch, free_batch(model, batch, path)
    changes += batch.changes if batch is not fixed_batch else ()
    changes += [*sizes_to_scales(model, batch, path), *remove_no_ops(model)]
    name_nodes(model)
    changes += declare_shapes(model, batch, path)
    _forget_origin(model)
    outputs = tuple(tensor_info(value) for value in model.graph.output)
    return Imported(path, digest, batch.image, outputs, options, model, opset, dtypes, tuple(changes))


def _convert(model: onnx.ModelProto, path: Path, changes: list[Change]) -> onnx.ModelProto:
    converted, done = to_opset_20(model, path)
    changes += [*done, *order_nodes(converted, path)]
    return converted


def _fold(model: onnx.ModelProto, batch: BatchAxis, path: Path, runs: Sequence[MeasuredRun] | None = None) -> list[Change]:
    """Fold constants, take branches, unpack sequences until nothing changes; the first round from `runs`, if there are some."""
    changes: list[Change] = []
    for _ in range(_MOST_ROUNDS):
        runs = measure_fixed(model, batch.image, batch.batches, path) if runs is None else runs
        changes += fold_constants(model, runs)
        replaced = take_branches(model, path)
        if opset_version(model) == OPSET:
            replaced += unpack_sequences(model)
        if not replaced:
            break
        changes, runs = [*changes, *replaced], None
    return changes


def _forget_origin(model: onnx.ModelProto) -> None:
    """Remove what exporters write about machine and source, by which equal graphs would differ; the model's metadata stay."""
    model.producer_name = model.producer_version = model.doc_string = model.domain = ""
    model.ClearField("model_version")
    for graph in all_graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:], graph.quantization_annotation[:]
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.doc_string = ""
            del item.metadata_props[:]
