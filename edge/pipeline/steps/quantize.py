"""quantize (int8): model.refined.onnx + calibration.json -> model.int8.onnx, with Q/DQ where TensorRT lowers it, linted."""

from pathlib import Path

from calib.errors import VerdictError
from calib.files import sha256_file, write_bytes
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from engines.build_folder.file_names import CALIBRATION, QUANTIZED, REFINED

_LISTED_SITES = 4


def quantize_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace) -> Step:
    """The step as `edge.pipeline.build` runs it."""
    reads = {
        "onnx": workspace.sha256(REFINED),
        "calibration": workspace.sha256(CALIBRATION),
        "keep_float": list(inputs.keep_float),
    }

    def work(out: Path, advance: Advance) -> None:
        quantize_model(request, inputs.keep_float, request.out / REFINED, request.out / CALIBRATION, out / QUANTIZED, advance)

    return Step("quantize", reads, (QUANTIZED,), work)


def quantize_model(
    request: BuildRequest,
    keep_float: tuple[str, ...],
    model_path: Path,
    table_path: Path,
    quantized_path: Path,
    advance: Advance,
) -> None:
    """Float graph and table -> Q/DQ graph, linted. Raises VerdictError when a layer would not run in INT8."""
    from calib.calibration_table import check_table, load_table
    from calib.graph import load_graph
    from calib.qdq_placement import QuantScheme
    from calib.qdq_writer import serialize
    from calib.quantize import quantize_graph
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import quantized_before_norm

    (model, _), table = load_graph(model_path), load_table(table_path)
    check_table(table, onnx_sha256=sha256_file(model_path))
    advance(0.2)
    quantized = quantize_graph(model, table, QuantScheme(exclude=keep_float), request.out / QUANTIZED)
    before_norm = quantized_before_norm(quantized, find_sites(quantized))
    if before_norm:
        raise VerdictError(
            "Q/DQ before an XNorm: one scale for vectors of all lengths",
            where=request.out / QUANTIZED,
            found=", ".join(before_norm[:_LISTED_SITES]),
            allowed="Q/DQ after the norm",
        )
    write_bytes(quantized_path, serialize(quantized))
