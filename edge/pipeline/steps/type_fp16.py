"""type (fp16, and int8 for a GPU): the last graph + xnorm.json -> model.typed.onnx, strongly typed."""

from functools import partial
from pathlib import Path

import numpy as np

from calib.errors import VerdictError
from calib.files import write_bytes
from edge.images.preprocess import Float32
from edge.numeric_tolerances import TYPED_FP16_SQNR_DB, TYPED_INT8_LOSS_DB
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.steps.export import CHECK_IMAGES
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from engines.build_folder.file_names import REFINED, TYPED, XNORM


def type_fp16_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, graph: str) -> Step:
    """The step as `edge.pipeline.build` runs it on the file `graph`."""
    reads = {
        "onnx": workspace.sha256(graph),
        "certificate": workspace.sha256(XNORM),
        "images": inputs.calib_images.sha256,
    }
    return Step("type", reads, (TYPED,), partial(type_model, request, inputs, graph))


def type_model(request: BuildRequest, inputs: BuildInputs, graph: str, out: Path, advance: Advance) -> None:
    """Graph -> strongly typed FP16 graph in the folder `out`, FP32 where the certificate asks for it; roundings emulated.

    Raises VerdictError when its outputs differ too much from the graph's. An INT8 graph is compared through its float graph: an
    FP16 rounding moves some codes by one, which is not a fault as long as the error against float does not grow.
    """
    from calib.graph import load_graph
    from calib.qdq_writer import serialize
    from edge.runtime.ort_runner import OrtRunner, emulated_runner
    from edge.stability.certificate import read_certificate
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import fp32_nodes
    from engines.typed_graph import type_graph

    folder, path = request.out, request.out / graph
    model, _ = load_graph(path)
    sites = find_sites(model, inputs.info.config.xnorm_sites, inputs.info.config.xnorm_kv_axis)
    kept = read_certificate(folder / XNORM).island_names
    typed = type_graph(model, keep_fp32=fp32_nodes(model, sites, kept))
    advance(0.5)
    (images,) = inputs.calib_images.take(CHECK_IMAGES).batches(inputs.info.preprocess, CHECK_IMAGES)
    reference = OrtRunner(path)(images)
    unquantized = OrtRunner(folder / REFINED)(images) if request.precision == "int8" else reference
    names = [value.name for value in typed.graph.output]
    for name, *sides in zip(names, unquantized, reference, emulated_runner(typed, folder / TYPED)(images), strict=True):
        if sides[0].dtype.kind == "f":  # of indices and other integers, no power can be told
            _check_output(path, name if len(names) > 1 else "the logits", *sides)
    write_bytes(out / TYPED, serialize(typed))


def _check_output(path: Path, name: str, unquantized: Float32, graph: Float32, typed: Float32) -> None:
    """Compare one output of the typed graph; `unquantized` is that of the graph before it was quantized, or `graph` itself.

    Raises VerdictError where typing has cost too much.
    """
    from calib.metrics import sqnr_db

    allowed = min(TYPED_FP16_SQNR_DB, sqnr_db(unquantized, graph) - TYPED_INT8_LOSS_DB)
    measured = sqnr_db(unquantized, typed) if np.isfinite(typed).all() else float("nan")
    if not measured >= allowed:
        raise VerdictError(
            "the FP16 graph's outputs differ too much from the FP32 graph's",
            where=path,
            found=f"SQNR of {name} {measured:.1f} dB, roundings emulated",
            allowed=f"at least {allowed:.1f} dB",
            next_command="ufovit build with precision fp32, and compare the layers' ranges in its report",
        )
