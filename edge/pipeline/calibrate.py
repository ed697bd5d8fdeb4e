"""`ufovit calibrate`: calibrate a graph, meet an accuracy budget, write the Q/DQ graph, report its cost."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.artifact import write_artifact
from calib.calibration_table import CalibrationTable
from calib.collect import CollectConfig, range_shift_warning
from calib.errors import ArtifactError, DataError, GraphError
from calib.files import atomic_path, write_bytes
from calib.graph import load_graph
from calib.qdq_placement import QuantPlan, QuantScheme, plan_quantization
from calib.qdq_writer import serialize
from calib.quantize import CalibrateConfig, calibrate_graph, quantize_graph
from calib.trt_calibration_cache import format_cache
from edge.images.graph_input import GraphImages, first_not_finite, input_shape
from edge.pipeline.calibrate_inputs import WRITTEN, CalibrateInputs, resolve
from edge.pipeline.calibrate_request import CalibrateRequest
from edge.pipeline.meet_budget import fit
from edge.progress import Progress
from edge.runtime.ort_runner import BATCH, OrtRunner, run_all, tapped_batch
from edge.tasks.classification.compare import holdout_lines
from engines.build_folder.file_names import CACHE, CALIBRATION, QUANTIZED, REFINED
from engines.layer_records import EngineEvidence
from engines.layer_requests import read_layers
from engines.precision_receipt import make_receipt


def calibrate_file(request: CalibrateRequest, progress: Progress) -> int:
    """Calibrate and return the exit code. Raises UfovitError; nothing is written before every result is complete."""
    inputs = resolve(request)
    scheme = QuantScheme(exclude=request.keep_float)
    plan = plan_quantization(inputs.model, scheme)  # refuses a pattern that matches nothing, and what cannot be quantized
    if inputs.table is not None:
        _check_scales(request, plan, inputs.table)
    if inputs.images.synthetic or (inputs.table is not None and inputs.table.synthetic):
        progress.say("SYNTHETIC IMAGES: the scales below are not calibrated on real images; the table is stamped")
    reference = _reference(request, inputs, progress)
    with tempfile.TemporaryDirectory(prefix="ufovit-calibrate-") as folder:
        refined = Path(folder) / REFINED
        table = inputs.table or _calibrate(request, inputs, scheme, refined, progress)
        model, data = load_graph(refined if inputs.table is None else request.graph)
    exit_code = 0
    if request.max_drop_points is not None:
        result = fit(model, table, scheme, inputs.holdout, reference, request.max_drop_points, progress)
        table, exit_code = replace(table, float_nodes=result.float_nodes), 0 if result.met else 1
    quantized = quantize_graph(model, table, scheme, request.out / QUANTIZED)
    int8 = OrtRunner(request.out / QUANTIZED, data=serialize(quantized), throughput=True)
    answers = _answers(int8, "the INT8 graph", inputs.holdout, progress)
    judges = f"{len(answers)} {'held-out' if inputs.held_out else 'calibration'} images"
    figures = list(holdout_lines(reference, answers, inputs.holdout.labels, judges))
    share = make_receipt(read_layers(quantized), EngineEvidence(), "int8").requested.get("int8", 0.0)
    _write(request.out, data, table, quantized)
    progress.say(f"INT8         {share:.1%} of the multiply-accumulates, {len(table.tensors)} activations")
    for line in figures:
        progress.say(line)
    if table.comparison is not None:
        progress.say(f"effort       {table.comparison}")
    warning = range_shift_warning(table)
    if warning is not None:
        progress.say(f"warning      {warning}")
    progress.say(f"written      {request.out}: {' '.join(WRITTEN)}")
    return exit_code


def _answers(runner: OrtRunner, what: str, images: GraphImages, progress: Progress) -> NDArray[np.float32]:
    with progress.task(f"{what} on {len(images)} images") as advance:
        return run_all(runner, images.batches(BATCH), lambda done: advance(done / len(images)))


def _reference(request: CalibrateRequest, inputs: CalibrateInputs, progress: Progress) -> NDArray[np.float32]:
    """Output of the float graph on the images that judge. Raises InputError where it cannot serve as a reference."""
    images = inputs.holdout
    outputs = _answers(OrtRunner(request.graph, throughput=True), "the float graph", images, progress)
    bad = first_not_finite(outputs)
    if bad is not None:
        raise GraphError(
            "the float graph outputs NaN or infinity",
            where=request.graph,
            found=f"on image {images.chosen[bad]}, counted from 0, of {images.source}",
        )
    judged = request.max_drop_points is not None or images.labels is not None
    if judged and outputs.ndim != 2:
        raise GraphError(
            "accuracy can be measured only on a graph that classifies",
            where=request.graph,
            found=f"output {outputs.shape}",
            allowed="(batch, classes)",
            next_command="leave out --max-drop and the labels",
        )
    if images.labels is not None and not (images.labels.min() >= 0 and images.labels.max() < outputs.shape[1]):
        raise DataError(
            "label out of range",
            where=request.holdout_labels or images.source,
            found=f"{images.labels.min()} to {images.labels.max()}",
            allowed=f"0 to {outputs.shape[1] - 1}",
        )
    return outputs


def _check_scales(request: CalibrateRequest, plan: QuantPlan, table: CalibrationTable) -> None:
    missing = [tensor for tensor in plan.activations if tensor not in table.tensors]
    if missing:
        raise ArtifactError(
            "calibration table has no scale for tensors that are to be quantized",
            where=request.table,
            found=f"{len(missing)} tensors: {', '.join(missing[:4])}",
            next_command="pass the --keep-float with which the table was made, or leave out --table",
        )


def _calibrate(
    request: CalibrateRequest, inputs: CalibrateInputs, scheme: QuantScheme, refined: Path, progress: Progress
) -> CalibrationTable:
    images = inputs.images
    size = tapped_batch(max(input_shape(inputs.model, request.graph)))
    digest = images.preprocess_sha256
    collect = CollectConfig(request.method, at_once=2, synthetic=images.synthetic, preprocess_sha256=digest)
    config = CalibrateConfig(request.effort, scheme, collect, refine_threads=2)
    with progress.task(f"calibrate on {len(images)} images, effort {request.effort}") as advance:
        return calibrate_graph(
            request.graph,
            refined,
            lambda: images.batches(size),
            images=len(images),
            data_sha256=images.sha256,
            config=config,
            progress=advance,
        )


def _write(out: Path, refined: bytes, table: CalibrationTable, quantized: onnx.ModelProto) -> None:
    """Write all files or none: those of an earlier run stay until the last byte of the new ones is on the disk."""
    with ExitStack() as files:  # renamed in the reverse order: the Q/DQ graph last
        quantized_file, cache, calibration, graph = (
            files.enter_context(atomic_path(out / name)) for name in (QUANTIZED, CACHE, CALIBRATION, REFINED)
        )
        write_bytes(quantized_file, serialize(quantized))  # flushed to disk, like the others, before anything is renamed
        # sorted as in the JSON: a reused table gives equal bytes
        write_bytes(cache, format_cache({name: tensor.scale for name, tensor in sorted(table.tensors.items())}).encode())
        write_artifact(calibration, table)
        write_bytes(graph, refined)
        (out / QUANTIZED).unlink(missing_ok=True)  # a kill between two renames: no graph beside the table of another
