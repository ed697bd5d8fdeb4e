"""What `ufovit calibrate` is asked for, and the graph and images that answer it: checked before anything is measured."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from calib.calibration_table import MIN_IMAGES, CalibrationTable, check_table, load_table
from calib.calibrators import range_method
from calib.errors import InputError, MissingError
from calib.files import sha256_bytes
from calib.graph import load_graph
from calib.refine.effort import resolve_effort
from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT
from edge.images.graph_input import GraphImages, Normalisation, fixed_batch, input_shape, made_up, open_graph_images
from edge.model.metadata import graph_preprocess, read_graph_info, read_info
from edge.pipeline.build_request import CALIB_IMAGES
from engines.build_folder.file_names import CACHE, CALIBRATION, QUANTIZED, REFINED

if TYPE_CHECKING:
    from edge.images.preprocess import Preprocess
    from edge.model.metadata import CheckpointInfo

COMMAND = "ufovit calibrate"
WRITTEN = (QUANTIZED, CALIBRATION, REFINED, CACHE)
"""What is made, the result first."""


@dataclass(frozen=True)
class CalibrateRequest:
    """What to calibrate, on what.

    Attributes:
        graph: an ONNX file, FP32.
        out: folder for what is made.
        images: pictures or a .npy file; None for the shipped calibration images, if the graph has their labels.
        count: how many of them calibrate; with a stored table, as many as it says.
        random: calibrate on this many made-up images instead; everything is stamped.
        holdout: images that judge; None for those of `images` that do not calibrate.
        holdout_labels: their classes, a .npy file, where `holdout` is one.
        normalisation: mean and deviation, for a graph that does not say how its images are prepared.
        table: an earlier calibration table, taken instead of calibrating.
        effort, method, keep_float: how.
        max_drop_points: accuracy budget to be met by leaving layers in float; None for no search.
    """

    graph: Path
    out: Path
    images: Path | None = None
    count: int = CALIB_IMAGES
    random: int | None = None
    holdout: Path | None = None
    holdout_labels: Path | None = None
    normalisation: Normalisation | None = None
    table: Path | None = None
    effort: str = "balanced"
    method: str = "mse"
    keep_float: tuple[str, ...] = ()
    max_drop_points: float | None = None

    def __post_init__(self) -> None:
        resolve_effort(self.effort)
        range_method(self.method)
        for option, value in (("--count", self.count), ("--random", self.random)):
            if value is not None and value < 1:
                raise InputError(f"{option} must be positive", found=value)
        if self.random is not None and (self.images is not None or self.table is not None):
            raise InputError("--random excludes --images and --table")
        if self.holdout_labels is not None and (self.holdout is None or self.holdout.suffix != ".npy"):
            raise InputError("--holdout-labels belongs to a --holdout that is a .npy file", found=self.holdout)
        if self.max_drop_points is not None and not 0 <= self.max_drop_points < math.inf:  # NaN, too
            raise InputError("accuracy budget is no number of points", found=self.max_drop_points, allowed="0 or more")


@dataclass(frozen=True)
class CalibrateInputs:
    """The checked inputs.

    Attributes:
        model: float graph.
        sha256: digest of its file.
        images: that calibrate; with a stored table, those that it is said to be made from, or else that judge.
        holdout: that judge.
        held_out: whether these are other images than those that calibrate.
        table: the stored table, None when there is to be a new one.
    """

    model: onnx.ModelProto
    sha256: str
    images: GraphImages
    holdout: GraphImages
    held_out: bool
    table: CalibrationTable | None


def resolve(request: CalibrateRequest) -> CalibrateInputs:
    """Open and check graph, images, table and --out. Raises InputError and MissingError; touches nothing."""
    _check_out(request)
    model, data = load_graph(request.graph)
    sha256, shape = sha256_bytes(data), input_shape(model, request.graph)
    _check_ends(model, request.graph)
    info, batch = read_graph_info(model, request.graph), fixed_batch(model, request.graph)

    def preprocess() -> Preprocess:
        return graph_preprocess(model, request.graph, info, request.normalisation, f"{COMMAND} {request.graph} --images DIR")

    remake = f"{COMMAND} {request.graph} --images DIR"
    table = None if request.table is None else load_table(request.table, remake=remake)
    holdout = _holdout(request, model, info, preprocess)
    if request.random is not None:
        everything = made_up(request.random, shape)
    elif request.table is not None and request.images is None and holdout is not None:
        everything = holdout
    else:
        everything = open_graph_images(_images(request, info is not None and info.labels == _shipped_labels()), preprocess)
    count = request.count if table is None else max(table.images, 1)
    images = everything.take(count)
    if table is not None:
        same_images = request.images is not None
        check_table(
            table,
            onnx_sha256=sha256,
            data_sha256=images.sha256 if same_images else None,
            preprocess_sha256=images.preprocess_sha256 if same_images else None,
            remake=remake,
        )
    elif len(images) < MIN_IMAGES:
        raise InputError(
            "too few calibration images",
            where=images.source,
            found=len(images),
            allowed=f"at least {MIN_IMAGES}, better {CALIB_IMAGES}",
            next_command=f"{COMMAND} {request.graph} --random 64"
            if request.random is not None
            else f"{remake} with more images, or a larger --count",
        )
    rest = everything.without(count)
    judging = holdout or rest or images
    for some in (images, judging):
        _check_shape(some, shape, request.graph)
    images, judging = (replace(some, largest_batch=batch) for some in (images, judging))
    return CalibrateInputs(model, sha256, images, judging, bool(holdout or rest), table)


def _check_out(request: CalibrateRequest) -> None:
    """Refuse, before any work, a folder that cannot be written and one in which the graph itself would be overwritten."""
    out = request.out
    if out.exists() and not out.is_dir():
        raise InputError("--out is no folder", where=out, next_command="choose another --out")
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        found = "not a folder" if not existing.is_dir() else "no permission to write"
        raise MissingError("folder cannot be written", where=existing, found=found, next_command="choose another --out")
    written = [(out / file).resolve() for file in WRITTEN]
    if request.table is None and request.graph.resolve() in written:
        raise InputError(
            "the graph would be overwritten by what is made from it",
            where=request.graph,
            found=f"--out {out}",
            next_command="choose another --out",
        )


def _check_ends(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph of several outputs and one that takes no float32; several inputs are `input_shape`'s."""
    constants = {tensor.name for tensor in model.graph.initializer}
    (kind,) = (v.type.tensor_type.elem_type for v in model.graph.input if v.name not in constants)
    if kind != onnx.TensorProto.FLOAT:
        found = onnx.TensorProto.DataType.Name(kind)
        raise InputError("the graph takes no float32", where=path, found=found, next_command="pass the FP32 graph")
    if len(model.graph.output) != 1:
        raise InputError("the graph must have one output", where=path, found=", ".join(v.name for v in model.graph.output))


def _check_shape(images: GraphImages, shape: tuple[int, ...], graph: Path) -> None:
    found = images.read(images.chosen[:1]).shape[1:]
    if found != shape:
        raise InputError(
            "the graph does not take these images", where=images.source, found=found, allowed=f"{shape}, as {graph} says"
        )


def _shipped_labels() -> tuple[str, ...]:
    return read_info(SHIPPED_CHECKPOINT).labels


def _images(request: CalibrateRequest, shipped_fit: bool) -> Path:
    if request.images is not None:
        return request.images
    if shipped_fit:
        return CALIBRATION_IMAGES
    if request.table is not None:
        raise InputError(
            "a stored table needs images that say what it costs",
            where=request.graph,
            found="neither --images nor --holdout",
            next_command=f"{COMMAND} {request.graph} --table {request.table} --holdout DIR; --images DIR, those that it was "
            "made from, checks that too",
        )
    raise InputError(
        "calibration needs images like those that the camera will see",
        where=request.graph,
        found="no --images, and the shipped images are of another kind",
        next_command=f"{COMMAND} {request.graph} --images DIR; --random 64 tries the tools on made-up ones",
    )


def _holdout(
    request: CalibrateRequest, model: onnx.ModelProto, info: CheckpointInfo | None, preprocess: Callable[[], Preprocess]
) -> GraphImages | None:
    """The images of --holdout, with labels where there are any; None without the option."""
    path = request.holdout
    if path is None:
        return None
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labelled = path.suffix != ".npy" and (
        path.is_dir() or path.suffix in (".csv", ".txt") or (beside != path and beside.is_file())
    )
    classes = None if not labelled else info.labels if info is not None else _classes(model, request.graph)
    return open_graph_images(path, preprocess, classes=classes, labels=request.holdout_labels)


def _classes(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Labels of a graph that names none: the class indices."""
    sides = model.graph.output[0].type.tensor_type.shape.dim
    if not sides or not sides[-1].dim_value:
        raise InputError(
            "the graph does not say how many classes it knows",
            where=f"{path}, output {model.graph.output[0].name}",
            allowed="(batch, classes) with classes fixed",
            next_command="pass --holdout FILE.npy --holdout-labels FILE.npy",
        )
    return tuple(map(str, range(sides[-1].dim_value)))
