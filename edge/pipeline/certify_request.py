"""What `ufovit certify` is asked for, and the graph and images that answer it: checked before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import InputError
from calib.files import sha256_bytes
from calib.graph import load_graph
from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT
from edge.images.graph_input import Normalisation
from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.images.preprocess import Preprocess
from edge.model.metadata import CheckpointInfo, graph_preprocess, read_graph_info, read_info
from edge.pipeline.build_request import CALIB_IMAGES
from edge.stability.certify import image_budget
from engines.build_folder.file_names import MODEL

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class CertifyRequest:
    """What to certify, on what.

    Attributes:
        source: an ONNX file, or a build folder, whose FP32 graph is taken.
        data: images; None for the shipped calibration images, if the graph is of a network with their labels.
        images: how many of them; None for as many as take about half a minute, 512 at most.
        normalisation: mean and deviation per channel on the [0, 1] scale, for a graph that does not say how its images are
            prepared.
    """

    source: Path
    data: Path | None = None
    images: int | None = None
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise InputError("number of images must be positive", found=self.images)


@dataclass(frozen=True)
class CertifyInputs:
    """The checked inputs.

    Attributes:
        path: the ONNX file.
        model: its graph, FP32.
        sha256: digest of the file.
        info: what the graph says of its network, None for a stranger's.
        preprocess: from pixels to the graph's input.
        images: to measure on.
    """

    path: Path
    model: onnx.ModelProto
    sha256: str
    info: CheckpointInfo | None
    preprocess: Preprocess
    images: ImageSet


def resolve(request: CertifyRequest) -> CertifyInputs:
    """Open and check graph and images. Raises InputError; touches nothing."""
    path = request.source / MODEL if request.source.is_dir() else request.source
    if request.source.is_dir() and not path.is_file():
        raise InputError("no build folder", where=request.source, found=f"no {MODEL}", next_command="ufovit build")
    model, data_bytes = load_graph(path)
    info = read_graph_info(model, path)
    preprocess = graph_preprocess(model, path, info, request.normalisation, f"ufovit certify {request.source} --data DIR")
    data = request.data
    if data is None:
        if info is None or info.labels != read_info(SHIPPED_CHECKPOINT).labels:
            raise InputError(
                "certifying needs images like those that the camera will see",
                where=path,
                found="no --data, and the shipped images are of another kind",
                next_command=f"ufovit certify {request.source} --data DIR",
            )
        data = CALIBRATION_IMAGES
    images = open_unlabelled(data)
    count = image_budget(model, min(len(images), CALIB_IMAGES)) if request.images is None else request.images
    return CertifyInputs(path, model, sha256_bytes(data_bytes), info, preprocess, images.take(count))
