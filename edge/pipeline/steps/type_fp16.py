"""type (fp16, and int8 for a GPU): the last graph + certificate.json -> model.typed.onnx, strongly typed."""

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
from engines.build_folder.file_names import CERTIFICATE, REFINED, TYPED


def type_fp16_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, graph: str) -> Step:
    """The step as `edge.pipeline.build` runs it on the file `graph`."""
    certificate = workspace.sha256(CERTIFICATE)
    reads = {"onnx": workspace.sha256(graph), "images": inputs.calib_images.sha256, "certificate": certificate}
    return Step("type", reads, (TYPED,), partial(type_model, request, inputs, graph))


def type_model(request: BuildRequest, inputs: BuildInputs, graph: str, out: Path, advance: Advance) -> None:
    """Graph -> strongly typed FP16 graph in the folder `out`, FP32 where the certificate asks for it; roundings emulated.

    Raises VerdictError when its outputs differ too much from the graph's. An INT8 graph is compared through its float graph: an
    FP16 rounding moves some codes by one, which is not a fault as long as the error against float does not grow.
    """
    from calib.graph import load_graph
    from calib.qdq_writer import serialize
    from edge.runtime.ort_runner import OrtRunner, emulated_runner, run_all
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import fp32_nodes
    from edge.stability.network_certificate import read_network_certificate
    from engines.typed_graph import type_graph

    folder, path = request.out, request.out / graph
    model, _ = load_graph(path)
    certificate = read_network_certificate(folder / CERTIFICATE)
    islands = frozenset(certificate.fp32_nodes) & {node.name for node in model.graph.node}
    if certificate.xnorms:
        sites = find_sites(model, inputs.network.xnorm_sites, inputs.network.xnorm_kv_axis)
        islands |= fp32_nodes(model, sites, certificate.island_names)
    typed = type_graph(model, keep_fp32=islands)
    advance(0.5)
    network = inputs.network
    batches = list(inputs.calib_images.take(CHECK_IMAGES).batches(network.preprocess, network.batch(CHECK_IMAGES)))
    reference = run_all(OrtRunner(path), batches)
    unquantized = run_all(OrtRunner(folder / REFINED), batches) if request.precision == "int8" else reference
    outputs = run_all(emulated_runner(typed, folder / TYPED), batches)
    names = [value.name for value in typed.graph.output]
    for name, *sides in zip(names, unquantized, reference, outputs, strict=True):
        if sides[0].dtype.kind == "f":  # of indices and other integers, no power can be told
            _check_output(path, name, *sides)
    write_bytes(out / TYPED, serialize(typed))


def _check_output(path: Path, name: str, unquantized: Float32, graph: Float32, typed: Float32) -> None:
    """Compare one output (n, ...) of the typed graph; `unquantized` is that before quantization, or `graph` itself.

    What an INT8 graph loses is that of the median image where that is less than over all images: of a classifier, one image
    between two classes has most of the error's power, and a code that moves by one decides it. A fault of typing is in all.

    Raises VerdictError where typing has cost too much, and where the typed graph's output is not finite.
    """
    from calib.metrics import sqnr_db

    allowed = min(TYPED_FP16_SQNR_DB, sqnr_db(unquantized, graph) - TYPED_INT8_LOSS_DB)
    finite = bool(np.isfinite(typed).all())
    measured = sqnr_db(unquantized, typed) if finite else float("nan")
    if not measured >= allowed and not (finite and _median_loss_db(unquantized, graph, typed) <= TYPED_INT8_LOSS_DB):
        raise VerdictError(
            "the FP16 graph's outputs differ too much from the FP32 graph's",
            where=path,
            found=f"SQNR of output {name} {measured:.1f} dB, roundings emulated",
            allowed=f"at least {allowed:.1f} dB",
            next_command="ufovit build with precision fp32, and compare the layers' ranges in its report",
        )


def _median_loss_db(unquantized: Float32, graph: Float32, typed: Float32) -> float:
    """Median over the images of the SQNR that each loses from `graph` to `typed`, dB within +-300; 300 for an exact `graph`."""
    from calib.metrics import power_ratio_db

    def powers(values: Float32) -> list[float]:
        return [float(np.sum(np.square(image, dtype=np.float64))) for image in values]

    pairs = zip(powers(graph - unquantized), powers(typed - unquantized), strict=True)
    return float(np.median([power_ratio_db(after, before) for before, after in pairs]))
