"""type (fp16, and int8 for a GPU): the last graph + xnorm.json -> model.typed.onnx, strongly typed."""

from functools import partial
from pathlib import Path

from calib.errors import VerdictError
from calib.files import write_bytes
from edge.numeric_tolerances import SQNR_CAP_DB, TYPED_FP16_SQNR_DB, TYPED_INT8_LOSS_DB
from edge.onnx_import.output_agreement import agreement_db
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.steps.export import CHECK_IMAGES
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from edge.tasks.task import Outputs
from engines.build_folder.file_names import REFINED, TYPED, XNORM


def type_fp16_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, graph: str) -> Step:
    """The step as `edge.pipeline.build` runs it on the file `graph`."""
    certified = workspace.made(XNORM)
    reads = {"onnx": workspace.sha256(graph), "images": inputs.calib_images.sha256}
    if certified:
        reads["certificate"] = workspace.sha256(XNORM)
    return Step("type", reads, (TYPED,), partial(type_model, request, inputs, graph, certified))


def type_model(request: BuildRequest, inputs: BuildInputs, graph: str, certified: bool, out: Path, advance: Advance) -> None:
    """Graph -> strongly typed FP16 graph in the folder `out`, FP32 where the certificate asks for it; roundings emulated.

    Raises VerdictError when its outputs differ too much from the graph's. An INT8 graph is compared through its float graph: an
    FP16 rounding moves some codes by one, which is not a fault as long as the error against float does not grow.
    """
    from calib.graph import load_graph
    from calib.qdq_writer import serialize
    from edge.runtime.ort_runner import OrtRunner, emulated_runner, run_all
    from edge.stability.certificate import read_certificate
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import fp32_nodes
    from engines.typed_graph import type_graph

    folder, path = request.out, request.out / graph
    model, _ = load_graph(path)
    islands: frozenset[str] = frozenset()
    if certified:
        sites = find_sites(model, inputs.network.xnorm_sites, inputs.network.xnorm_kv_axis)
        islands = fp32_nodes(model, sites, read_certificate(folder / XNORM).island_names)
    typed = type_graph(model, keep_fp32=islands)
    advance(0.5)
    network = inputs.network
    batches = list(inputs.calib_images.take(CHECK_IMAGES).batches(network.preprocess, network.batch(CHECK_IMAGES)))
    outputs = run_all(emulated_runner(typed, folder / TYPED), batches)
    reference = run_all(OrtRunner(path), batches)
    allowed = TYPED_FP16_SQNR_DB
    if request.precision == "int8":
        unquantized = run_all(OrtRunner(folder / REFINED), batches)
        allowed = min(allowed, _least_sqnr_db(unquantized, reference) - TYPED_INT8_LOSS_DB)
        reference = unquantized
    measured = _least_sqnr_db(reference, outputs)
    if not measured >= allowed:
        raise VerdictError(
            "the FP16 graph's outputs differ too much from the FP32 graph's",
            where=path,
            found=f"SQNR of the outputs {measured:.1f} dB, roundings emulated",
            allowed=f"at least {allowed:.1f} dB",
            next_command="ufovit build with precision fp32, and compare the layers' ranges in its report",
        )
    write_bytes(out / TYPED, serialize(typed))


def _least_sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """The smallest SQNR of an output of real numbers; classes and masks of whole numbers are judged by the drift."""
    pairs = zip(reference, outputs, strict=True)
    return min((agreement_db(a, b) for a, b in pairs if a.dtype.kind == "f"), default=SQNR_CAP_DB)
