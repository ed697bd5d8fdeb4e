"""import: an ONNX file of the user -> model.onnx, checked against the file as given; import.json; golden.npz."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from calib.artifact import write_artifact
from calib.files import canonical_json, sha256_bytes, write_bytes
from edge.images.golden_pair import make_golden, write_golden
from edge.onnx_import.imported import CHECK_IMAGES
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.preflight import check_patterns
from edge.pipeline.workspace import Step
from edge.progress import Advance
from engines.build_folder.file_names import GOLDEN, IMPORT, MODEL
from engines.hardware import versions


def import_step(request: BuildRequest, inputs: BuildInputs) -> Step:
    """The step as `edge.pipeline.build` runs it."""
    network = inputs.network
    assert network.imported is not None
    options = network.imported.options
    constants = {name: sha256_bytes(canonical_json(value.tolist())) for name, value in options.constant_inputs.items()}
    reads = {
        "source": network.sha256,
        "input_shapes": {name: list(shape) for name, shape in options.input_shapes.items()},
        "constant_inputs": constants,
        "preprocess": network.preprocess.sha256,
        "parity_images": inputs.calib_images.sha256,
        "versions": versions("onnx", "onnxscript", "onnxsim", "onnxruntime"),
    }
    return Step("import", reads, (MODEL, IMPORT, GOLDEN), partial(import_network, request, inputs))


def import_network(request: BuildRequest, inputs: BuildInputs, out: Path, advance: Advance) -> None:
    """ONNX file -> rewritten graph, record of the import, golden pair in the folder `out`.

    Raises VerdictError when the imported graph does not compute what the file computes; UsageError for a pattern of layers that
    matches none.
    """
    import onnx

    from calib.qdq_writer import serialize
    from edge.onnx_import import rewrite

    network = inputs.network
    imported = network.imported
    assert imported is not None
    model = onnx.ModelProto()
    model.CopyFrom(imported.model)
    advance(0.1)
    batches = list(inputs.calib_images.take(CHECK_IMAGES).batches(network.preprocess, network.batch(CHECK_IMAGES)))
    record = rewrite(model, batches, imported)
    write_bytes(out / MODEL, serialize(model))
    write_artifact(out / IMPORT, record)
    check_patterns(request, inputs, out / MODEL)
    write_golden(out / GOLDEN, make_golden(inputs.calib_images.pixels(0), network.preprocess))
