"""import: an ONNX file of the user -> model.onnx, checked against the file as given; import.json; golden.npz."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from calib.artifact import write_artifact
from calib.errors import DataError
from calib.files import write_bytes
from edge.images.golden_pair import make_golden, write_golden
from edge.onnx_import.imported import CHECK_IMAGES
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.preflight import check_patterns
from edge.pipeline.recall_import import import_key, import_reads
from edge.pipeline.workspace import Step
from edge.progress import Advance
from engines.build_folder.file_names import GOLDEN, IMPORT, MODEL


def import_step(request: BuildRequest, inputs: BuildInputs) -> Step:
    """The step as `edge.pipeline.build` runs it."""
    network = inputs.network
    assert network.imported is not None
    reads = {
        **import_reads(network.sha256, network.imported.options),
        "preprocess": network.preprocess.sha256,
        "parity_images": inputs.calib_images.sha256,
    }
    return Step("import", reads, (MODEL, IMPORT, GOLDEN), partial(import_network, request, inputs))


def import_network(request: BuildRequest, inputs: BuildInputs, out: Path, advance: Advance) -> None:
    """ONNX file -> rewritten graph, record of the import, golden pair in the folder `out`.

    Raises VerdictError when the imported graph does not compute what the file computes; UsageError for a pattern of layers that
    matches none.
    """
    import onnx

    from calib.qdq_writer import serialize
    from edge.onnx_import import import_onnx, rewrite
    from edge.onnx_import.imported import Imported
    from edge.stability.finders.xnorm import find_norms

    network = inputs.network
    imported = network.imported
    assert imported is not None
    if not isinstance(imported, Imported):
        imported = import_onnx(imported.path, imported.options)
        if imported.data_sha256 != network.sha256:
            what, command = "the ONNX file changed during the build", "run the same command again"
            raise DataError(what, where=imported.path, next_command=command)
    model = onnx.ModelProto()
    model.CopyFrom(imported.model)
    advance(0.1)
    batches = list(inputs.calib_images.take(CHECK_IMAGES).batches(network.preprocess, network.batch(CHECK_IMAGES)))
    record = rewrite(model, batches, imported)
    write_bytes(out / MODEL, serialize(model))
    sites, unjudged = find_norms(model)
    norms = {norm.name: norm.reason for norm in unjudged}
    key = import_key(imported.data_sha256, imported.options)
    write_artifact(out / IMPORT, replace(record, key=key, judged_norms=len(sites), unjudged_norms=norms))
    check_patterns(request, inputs, out / MODEL)
    write_golden(out / GOLDEN, make_golden(inputs.calib_images.pixels(0), network.preprocess))
