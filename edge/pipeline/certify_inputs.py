"""Open and check the graph and the images of `ufovit certify` before anything is measured."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from calib.errors import ArtifactError, UsageError
from edge.images.graph_input import fixed_batch
from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.images.preprocess import Preprocess, read_preprocess
from edge.model.metadata import CheckpointInfo
from edge.onnx_import.imported import CHECK_IMAGES
from edge.pipeline.build_inputs import shipped_calibration_images
from edge.pipeline.network_options import InputOptions
from edge.pipeline.open_graph import open_graph, rewrite_graph
from edge.pipeline.request_checks import CALIB_IMAGES
from edge.stability.certify import image_budget
from engines.build_folder.file_names import MODEL
from engines.build_folder.folder import BuildFolder


@dataclass(frozen=True)
class CertifyInputs:
    """The checked inputs.

    Attributes:
        model: the FP32 graph; `sha256` is the digest of its file.
        info: metadata of the network in the graph, None for a graph of another origin.
        batch: 1 for a graph that takes one image at a time, None for any number.
        rewritten: what was rewritten in the graph, a sentence per kind of operator.
    """

    model: onnx.ModelProto
    sha256: str
    info: CheckpointInfo | None
    preprocess: Preprocess
    images: ImageSet
    batch: int | None
    rewritten: tuple[str, ...]


def resolve(source: Path, data: Path | None, count: int | None, options: InputOptions) -> CertifyInputs:
    """Open and check a graph, or that of a build folder, and `count` images to measure on. Raises InputError; touches nothing.

    Without `data` the shipped images are taken, without `count` as many as a run has time for.
    """
    path = source / MODEL if source.is_dir() else source
    if source.is_dir() and not path.is_file():
        raise ArtifactError("not a build folder", where=source, found=f"no {MODEL}", next_command="ufovit build")
    graph = open_graph(path, options)
    info = graph.info
    remake = f"ufovit certify {source} --data DIR"
    stored = source.is_dir() and info is None
    preprocess = read_preprocess(BuildFolder(source).manifest) if stored else graph.preprocess(options, remake)
    data = data or shipped_calibration_images(info)
    if data is None:
        raise UsageError(
            "certifying needs images like those that the camera will see",
            where=path,
            found="no --data, and the shipped images have other labels",
            next_command=remake,
        )
    images = open_unlabelled(data)
    chosen = images.take(count or image_budget(graph.model, min(len(images), CALIB_IMAGES)))
    batch = fixed_batch(graph.model, path)
    graph, rewritten = rewrite_graph(graph, images.take(CHECK_IMAGES).batches(preprocess, batch or CHECK_IMAGES))
    return CertifyInputs(graph.model, graph.sha256, info, preprocess, chosen, batch, rewritten)
