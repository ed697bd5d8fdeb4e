"""Open and check the graph and the images of `ufovit calibrate` before anything is measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from calib.calibration_table import CalibrationTable, check_table, load_table
from calib.errors import DataError, GraphError, UsageError
from calib.files import check_output
from edge.images.graph_input import GraphImages, fixed_batch, input_shape, made_up, open_graph_images
from edge.images.labelled_images import has_labels
from edge.images.preprocess import Preprocess
from edge.model.metadata import CheckpointInfo
from edge.onnx_import.imported import CHECK_IMAGES
from edge.pipeline.build_inputs import shipped_calibration_images
from edge.pipeline.calibrate_request import CalibrateRequest
from edge.pipeline.open_graph import OpenedGraph, open_graph, rewrite_graph
from edge.pipeline.request_checks import check_calibration_images
from engines.build_folder.file_names import CACHE, CALIBRATION, QUANTIZED, REFINED

COMMAND = "ufovit calibrate"
WRITTEN = (QUANTIZED, CALIBRATION, REFINED, CACHE)
"""Files that are written, the result first."""


@dataclass(frozen=True)
class CalibrateInputs:
    """The checked inputs.

    Attributes:
        graph: float graph; `rewritten` says what was rewritten in it.
        images: that calibrate; with a stored table, those of --images, or else those that judge.
        holdout: that judge; `held_out` if they are other images than those that calibrate.
        table: the stored table, None to calibrate.
    """

    graph: OpenedGraph
    rewritten: tuple[str, ...]
    images: GraphImages
    holdout: GraphImages
    held_out: bool
    table: CalibrationTable | None


def resolve(request: CalibrateRequest) -> CalibrateInputs:
    """Open and check graph, images, table and --out. Raises InputError and MissingError; touches nothing."""
    _check_out(request)
    graph = open_graph(request.graph, request.input, as_is=request.table is not None)
    model, info = graph.model, graph.info
    shape = input_shape(model, request.graph)
    batch = fixed_batch(model, request.graph)
    remake = f"{COMMAND} {request.graph} --images DIR"

    def preprocess() -> Preprocess:
        return graph.preprocess(request.input, remake)

    table = None if request.table is None else load_table(request.table, remake=remake)
    holdout = _holdout(request, model, info, preprocess)
    if request.random is not None:
        everything = made_up(request.random, shape)
    elif request.table is not None and request.images is None and holdout is not None:
        everything = holdout
    else:
        everything = open_graph_images(_images(request, info), preprocess)
    count = request.count if table is None else max(table.images, 1)
    images = everything.take(count)
    if table is not None:
        same_images = request.images is not None
        check_table(
            table,
            onnx_sha256=graph.sha256,
            data_sha256=images.sha256 if same_images else None,
            preprocess_sha256=images.preprocess_sha256 if same_images else None,
            remake=remake,
        )
    else:
        more = f"{remake} with more images, or a larger --count"
        check_calibration_images(
            len(images), images.source, more if request.random is None else f"{COMMAND} {request.graph} --random 64"
        )
    rest = everything.without(count)
    judging = holdout or rest or images
    for image_set in (images, judging):
        found = image_set.read(image_set.chosen[:1]).shape[1:]
        if found != shape:
            what, allowed = "the graph does not take these images", f"{shape}, as {request.graph} says"
            raise DataError(what, where=image_set.source, found=found, allowed=allowed)
    images, judging = (replace(image_set, largest_batch=batch) for image_set in (images, judging))
    graph, rewritten = rewrite_graph(graph, images.take(CHECK_IMAGES).batches(CHECK_IMAGES))
    return CalibrateInputs(graph, rewritten, images, judging, bool(holdout or rest), table)


def _check_out(request: CalibrateRequest) -> None:
    """Refuse a folder that cannot be written, and one in which the graph itself would be overwritten."""
    out = request.out
    if out.exists() and not out.is_dir():
        raise UsageError("--out is not a folder", where=out, next_command="choose another --out")
    for file in WRITTEN:
        check_output(out / file)
    written = [(out / file).resolve() for file in WRITTEN]
    if request.table is None and request.graph.resolve() in written:
        raise UsageError(
            "the graph would be overwritten by the output",
            where=request.graph,
            found=f"--out {out}",
            next_command="choose another --out",
        )


def _images(request: CalibrateRequest, info: CheckpointInfo | None) -> Path:
    images = request.images or shipped_calibration_images(info)
    if images is not None:
        return images
    if request.table is not None:
        raise UsageError(
            "--table needs images on which its accuracy cost is measured",
            where=request.graph,
            found="neither --images nor --holdout",
            next_command=f"{COMMAND} {request.graph} --table {request.table} --holdout DIR; --images DIR, those that it was "
            "made from, checks that too",
        )
    raise UsageError(
        "calibration needs images like those that the camera will see",
        where=request.graph,
        found="no --images, and the shipped images have other labels",
        next_command=f"{COMMAND} {request.graph} --images DIR; --random 64 tries the tools on synthetic ones",
    )


def _holdout(
    request: CalibrateRequest, model: onnx.ModelProto, info: CheckpointInfo | None, preprocess: Callable[[], Preprocess]
) -> GraphImages | None:
    """The images of --holdout, with labels where there are any; None without the option."""
    path = request.holdout
    if path is None:
        return None
    labelled = path.suffix != ".npy" and has_labels(path)
    classes = None if not labelled else info.labels if info is not None else _classes(model, request.graph)
    return open_graph_images(path, preprocess, classes=classes, labels=request.holdout_labels)


def _classes(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Labels of a graph without class names: the class indices."""
    sides = model.graph.output[0].type.tensor_type.shape.dim
    if not sides or not sides[-1].dim_value:
        raise GraphError(
            "the graph's output does not fix the number of classes",
            where=f"{path}, output {model.graph.output[0].name}",
            allowed="(batch, classes) with classes fixed",
            next_command="pass --holdout FILE.npy --holdout-labels FILE.npy",
        )
    return tuple(map(str, range(sides[-1].dim_value)))
