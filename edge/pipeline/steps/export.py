"""export: checkpoint -> model.onnx, checked against torch; export.json; golden.npz, the first calibration image."""

from functools import partial
from pathlib import Path

from calib.artifact import write_artifact
from calib.errors import DataError
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.open_network import stated_network
from edge.pipeline.preflight import check_patterns
from edge.pipeline.workspace import Step
from edge.progress import Advance
from engines.build_folder.file_names import EXPORT, GOLDEN, MODEL
from engines.hardware import versions

CHECK_IMAGES = 32
"""Images on which export and typing are checked."""


def export_step(request: BuildRequest, inputs: BuildInputs) -> Step:
    """The step as `edge.pipeline.build` runs it."""
    info = inputs.network.info
    assert info is not None
    reads = {
        "checkpoint": info.sha256,
        "info": info.as_json(),
        "parity_images": inputs.calib_images.sha256,
        "versions": versions("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"),
    }
    return Step("export", reads, (MODEL, EXPORT, GOLDEN), partial(export_checkpoint, request, inputs))


def export_checkpoint(request: BuildRequest, inputs: BuildInputs, out: Path, advance: Advance) -> None:
    """Checkpoint -> ONNX, record of the export, golden pair in the folder `out`.

    Raises DataError when the checkpoint was replaced meanwhile; UsageError for a pattern of layers that matches none.
    """
    from edge.images.golden_pair import make_golden, write_golden
    from edge.model.checkpoint import load_checkpoint, random_network
    from edge.model.export import export_onnx

    info = inputs.network.info
    assert info is not None
    if info.random_weights and not info.file:
        network = random_network(info.config, request.seed)
    else:
        network, loaded = load_checkpoint(
            Path(info.file),
            model=info.config.name,
            image_size=info.config.image_size,
            network=stated_network(request.network),
        )
        if loaded.sha256 != info.sha256:  # else the manifest would name a checkpoint with other weights
            raise DataError(
                "checkpoint changed during the build",
                where=info.file,
                next_command="run the same command again",
            )
    advance(0.1)
    (images,) = inputs.calib_images.take(CHECK_IMAGES).batches(info.preprocess, CHECK_IMAGES)
    write_artifact(out / EXPORT, export_onnx(network, out / MODEL, images, info))
    check_patterns(request, inputs, out / MODEL)
    write_golden(out / GOLDEN, make_golden(inputs.calib_images.pixels(0), info.preprocess))
