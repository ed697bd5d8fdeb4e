"""Apply the rewriters one by one, each checked on real images; one whose result differs is undone.

Every rewriter's result is compared with the graph as it was imported, and the finished graph with the file as given, where ONNX
Runtime can run that: with the options that it was imported with, all outputs, on the same images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import DataError, GraphError, VerdictError
from calib.files import sha256_bytes
from calib.graph import opset_version
from calib.ort_session import GraphSession
from edge.numeric_tolerances import IMPORT_SQNR_DB, IMPORT_WIDENED_SQNR_DB
from edge.onnx_import.external_data import read_model
from edge.onnx_import.graph_order import name_nodes
from edge.onnx_import.import_record import ImportChange, ImportParity, ImportRecord, RewriterResult, RewrittenNode
from edge.onnx_import.imported import Imported
from edge.onnx_import.input_shapes import fix_inputs
from edge.onnx_import.named_outputs import take_outputs
from edge.onnx_import.output_agreement import agreement_db
from edge.onnx_import.rewriters import REWRITERS

Batches = Sequence[NDArray[Any]]
Outputs = list[dict[str, NDArray[Any]]]


def rewrite(model: onnx.ModelProto, batches: Batches, original: Imported) -> ImportRecord:
    """Rewrite `model` in place, check it, and record what import and rewriters did.

    Args:
        model: `original.model` or a copy of it.
        batches: preprocessed images (B, ...) as `original.image_input` takes them; for a graph with a fixed batch they are
            divided, the last batch filled up with the first images.

    The record's `onnx_sha256` is that of `model.SerializeToString(deterministic=True)`.
    Raises VerdictError when the finished graph does not compute what the file as given computes, GraphError or DataError when
    it cannot be run.
    """
    if not batches:
        raise DataError("no images to check the imported graph with")
    image = original.image_input.name
    parts = _parts(batches, original.image_input.shape[0])

    def outputs() -> Outputs:
        return _run(GraphSession(model, threads=0, where=original.path), image, parts)

    expected, results = outputs(), []
    runs = [expected]  # of the graph after the last rewriter that was kept, then of the one that is checked: they may be large

    def check() -> float:
        runs.append(outputs())
        return _worst(expected, runs[-1])

    for kind in REWRITERS:
        before = onnx.ModelProto()
        before.CopyFrom(model)
        result = _apply(model, kind, check)
        if result is not None:
            results.append(result)
            if result.kept:
                del runs[:-1]
            else:
                model.CopyFrom(before)
                del runs[1:]
    name_nodes(model)
    return ImportRecord(
        source=original.path.name,
        source_sha256=original.data_sha256,
        onnx_sha256=sha256_bytes(model.SerializeToString(deterministic=True)),
        opset_before=original.opset,
        opset_after=opset_version(model),
        changes=tuple(ImportChange(change.kind, change.node, change.detail) for change in original.changes),
        rewriters=tuple(results),
        parity=check_parity(model, batches, original, runs[-1]),
        input=original.image_input,
        outputs=original.outputs,
    )


def _apply(model: onnx.ModelProto, kind: str, check: Callable[[], float]) -> RewriterResult | None:
    """Apply one rewriter in place; None if it recognises nothing. `check` gives the agreement of the model's outputs in dB."""
    nodes: tuple[RewrittenNode, ...] = ()
    try:
        places = REWRITERS[kind](model)
        if not places:
            return None
        nodes = tuple(RewrittenNode(place.node, place.into, place.reason) for place in places)
        if not any(place.into for place in places):
            return RewriterResult(kind, True, "nothing to rewrite", nodes, None)
        figure = check()
    except (GraphError, DataError) as error:
        return RewriterResult(kind, False, f"the rewritten graph does not run: {error.what}", nodes, None)
    kept = figure >= IMPORT_SQNR_DB
    reason = "same outputs" if kept else f"outputs differ: {figure:.1f} dB, {IMPORT_SQNR_DB:g} dB needed"
    return RewriterResult(kind, kept, reason, nodes, figure)


def check_parity(model: onnx.ModelProto, batches: Batches, original: Imported, outputs: Outputs | None = None) -> ImportParity:
    """Compare a graph with the file as given, on images; `outputs` are those of the graph, where they are known.

    Raises VerdictError below the tolerance for the file's precision.
    """
    images = sum(len(batch) for batch in batches)
    given, _, _ = read_model(original.path)
    take_outputs(given, original.options.outputs, original.path)
    image, _ = fix_inputs(given, original.options, original.path)
    parts = _parts(batches, image.shape[0] or original.image_input.shape[0])
    try:
        session = GraphSession(given, threads=0, where=original.path)
        expected = _run(session, image.name, [part.astype(image.dtype) for part in parts])
    except (GraphError, DataError) as error:
        return ImportParity(images, None, f"ONNX Runtime cannot run the file as given: {error.what}")
    if outputs is None or parts is not batches:  # another division into batches
        outputs = _run(GraphSession(model, threads=0, where=original.path), original.image_input.name, parts)
    figure = _worst(expected, outputs)
    allowed = IMPORT_WIDENED_SQNR_DB if {"float16", "bfloat16"} & set(original.dtypes) else IMPORT_SQNR_DB
    if figure < allowed:
        what = "the imported graph does not compute what the file as given computes"
        found = f"SQNR of the outputs {figure:.1f} dB"
        raise VerdictError(what, where=original.path, found=found, allowed=f"at least {allowed:g} dB")
    return ImportParity(images, figure, "compared in ONNX Runtime")


def _run(session: GraphSession, image: str, batches: Batches) -> Outputs:
    return [session({image: batch}) for batch in batches]


def _parts(batches: Batches, size: int | None) -> Batches:
    """The same images in batches of a fixed size, filled up with the first ones; as they are where the size is free."""
    if size is None:
        return batches
    images = np.concatenate(batches)
    count = -(-len(images) // size)
    return np.split(np.resize(images, (count * size, *images.shape[1:])), count)


def _worst(expected: Outputs, outputs: Outputs) -> float:
    """The smallest agreement of all outputs and batches, in dB."""
    return min(
        agreement_db(values, others[name])
        for first, others in zip(expected, outputs, strict=True)
        for name, values in first.items()
    )
