"""`ufovit calibrate`: calibrate a graph, meet an accuracy budget, write the Q/DQ graph, report its cost."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx

from calib.artifact import write_artifact
from calib.calibration_table import CalibrationTable
from calib.collect import CollectConfig, range_shift_warning
from calib.errors import ArtifactError, DataError, GraphError
from calib.files import atomic_path, write_bytes
from calib.graph import load_graph
from calib.placement import PlacementSearch, without
from calib.qdq_placement import QuantPlan, QuantScheme, plan_quantization
from calib.qdq_writer import serialize
from calib.quantize import CalibrateConfig, calibrate_graph, quantize_graph
from calib.trt_calibration_cache import format_cache
from edge.images.graph_input import GraphImages, first_not_finite, input_shape
from edge.pipeline.build_inputs import say_notes
from edge.pipeline.calibrate_figures import int8_share
from edge.pipeline.calibrate_inputs import WRITTEN, CalibrateInputs, resolve
from edge.pipeline.calibrate_request import CalibrateRequest
from edge.pipeline.meet_budget import fit
from edge.pipeline.placement_option import ALL, read_placement
from edge.progress import Progress
from edge.runtime.ort_runner import BATCH, OrtRunner, run_all, tapped_batch
from edge.tasks.holdout_loss import measure_loss
from edge.tasks.task import Outputs
from engines.build_folder.file_names import CACHE, CALIBRATION, QUANTIZED, REFINED


def calibrate_file(request: CalibrateRequest, progress: Progress) -> int:
    """Calibrate and return the exit code. Raises UfovitError; nothing is written before every result is complete."""
    inputs = resolve(request)
    scheme = QuantScheme(exclude=(*request.keep_float, *read_placement(request.placement or ALL)))
    plan_quantization(inputs.graph.model, scheme)  # refuses a pattern that matches nothing, and what cannot be quantized
    if inputs.table is not None:
        placed = inputs.table.placement.float_nodes if inputs.table.placement is not None else ()
        _check_scales(request, plan_quantization(inputs.graph.model, without(scheme, placed)), inputs.table)
    if inputs.images.synthetic or (inputs.table is not None and inputs.table.synthetic):
        progress.say("SYNTHETIC IMAGES: the scales below are not calibrated on real images; the table is stamped")
    say_notes(inputs.images, progress)
    if inputs.held_out and inputs.holdout.source != inputs.images.source:
        say_notes(inputs.holdout, progress)
    for line in inputs.rewritten:
        progress.say(f"import       {line}")
    reference = _reference(request, inputs, progress)
    with tempfile.TemporaryDirectory(prefix="ufovit-calibrate-") as folder:
        source, refined = Path(folder) / request.graph.name, Path(folder) / REFINED
        write_bytes(source, inputs.graph.data)
        table = inputs.table or _calibrate(request, inputs, scheme, source, refined, progress)
        model, data = load_graph(refined if inputs.table is None else source)
    exit_code = 0
    placed = table.placement.float_nodes if table.placement is not None else ()
    scheme = without(scheme, placed)
    if request.max_drop_points is not None:
        result = fit(model, table, scheme, inputs.holdout, reference, request.max_drop_points, progress)
        table, exit_code = replace(table, float_nodes=(*placed, *result.float_nodes)), 0 if result.met else 1
    quantized = quantize_graph(model, table, scheme, request.out / QUANTIZED)
    int8 = OrtRunner(request.out / QUANTIZED, data=serialize(quantized), throughput=True)
    answers = _answers(int8, "the INT8 graph", inputs.holdout, progress)
    judges = f"{len(inputs.holdout)} {'held-out' if inputs.held_out else 'calibration'} images"
    names = [value.name for value in quantized.graph.output]
    loss = measure_loss(names, reference, answers, inputs.holdout.labels, judges)
    share = int8_share(quantized, plan_quantization(model, scheme), table)
    floor_code, floor_sentence = share.judge(request.int8_floor)
    _write(request.out, data, table, quantized)
    for line in (*share.lines, *filter(None, [floor_sentence]), *loss.lines):
        progress.say(line)
    if table.placement is not None:
        progress.say(f"placement    {table.placement}")
    if table.comparison is not None:
        progress.say(f"effort       {table.comparison}")
    warning = range_shift_warning(table)
    if warning is not None:
        progress.say(f"warning      {warning}")
    progress.say(f"written      {request.out}: {' '.join(WRITTEN)}")
    return exit_code or floor_code or (3 if loss.undefined else 0)


def _answers(runner: OrtRunner, what: str, images: GraphImages, progress: Progress) -> Outputs:
    with progress.task(f"{what} on {len(images)} images") as advance:
        return run_all(runner, images.batches(BATCH), lambda done: advance(done / len(images)))


def _reference(request: CalibrateRequest, inputs: CalibrateInputs, progress: Progress) -> Outputs:
    """Outputs of the float graph on the images that judge. Raises InputError where it cannot serve as a reference."""
    images = inputs.holdout
    outputs = _answers(OrtRunner(request.graph, data=inputs.graph.data, throughput=True), "the float graph", images, progress)
    bad = next((at for at in map(first_not_finite, outputs) if at is not None), None)
    if bad is not None:
        raise GraphError(
            "the float graph outputs NaN or infinity",
            where=request.graph,
            found=f"on image {images.chosen[bad]}, counted from 0, of {images.source}",
        )
    judged = request.max_drop_points is not None or images.labels is not None
    first = outputs[0]
    if judged and first.ndim != 2:
        raise GraphError(
            "accuracy can be measured only on a graph that classifies",
            where=request.graph,
            found=f"output {first.shape}",
            allowed="(batch, classes)",
            next_command="leave out --max-drop and the labels",
        )
    if images.labels is not None and not (images.labels.min() >= 0 and images.labels.max() < first.shape[1]):
        raise DataError(
            "label out of range",
            where=request.holdout_labels or images.source,
            found=f"{images.labels.min()} to {images.labels.max()}",
            allowed=f"0 to {first.shape[1] - 1}",
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
    request: CalibrateRequest,
    inputs: CalibrateInputs,
    scheme: QuantScheme,
    source: Path,
    refined: Path,
    progress: Progress,
) -> CalibrationTable:
    images = inputs.images
    size = tapped_batch(max(input_shape(inputs.graph.model, request.graph)))
    digest = images.preprocess_sha256
    collect = CollectConfig(request.method, at_once=2, synthetic=images.synthetic, preprocess_sha256=digest)
    config = CalibrateConfig(
        request.effort,
        scheme,
        collect,
        refine_threads=2,
        placement=PlacementSearch(request.int8_floor or 0.0) if request.search_placement else None,
    )
    with progress.task(f"calibrate on {len(images)} images, effort {request.effort}") as advance:
        return calibrate_graph(
            source,
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
