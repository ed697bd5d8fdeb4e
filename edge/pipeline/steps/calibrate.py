"""calibrate (int8): the last float graph + calibration images -> model.refined.onnx, calibration.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.step_counter import StepCounter
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from edge.runtime.ort_runner import tapped_batch
from engines.build_folder.file_names import CALIBRATION, REFINED
from engines.hardware import versions

if TYPE_CHECKING:
    from onnx import ModelProto


def calibrate_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, graph: str, counter: StepCounter) -> Step:
    """The step as `edge.pipeline.build` runs it on the file `graph`."""
    reads = {
        "onnx": workspace.sha256(graph),
        "images": inputs.calib_images.sha256,
        "preprocess": inputs.network.preprocess.sha256,
        "method": request.method,
        "effort": request.effort,
        "keep_float": list(inputs.keep_float),
        **({"placement": {"least_share": request.int8_floor, **counter.reads(workspace)}} if inputs.search_placement else {}),
        "versions": versions("onnx", "onnxruntime", "numpy"),
    }

    def work(out: Path, advance: Advance) -> None:
        calibrate_model(counter, request.out / graph, out / REFINED, out / CALIBRATION, advance)

    return Step("calibrate", reads, (REFINED, CALIBRATION), work)


def calibrate_model(counter: StepCounter, model_path: Path, refined_path: Path, table_path: Path, advance: Advance) -> None:
    """Float graph and calibration images -> refined float graph, calibration table."""
    from calib.calibration_table import save_table
    from calib.collect import CollectConfig
    from calib.placement import PlacementSearch
    from calib.qdq_placement import QuantScheme
    from calib.quantize import CalibrateConfig, calibrate_graph

    request, inputs = counter.request, counter.inputs
    images, preprocess = inputs.calib_images, inputs.network.preprocess
    search = (
        PlacementSearch(request.int8_floor or 0.0, counter if counter.counts else None) if inputs.search_placement else None
    )
    size = inputs.network.batch(tapped_batch(preprocess.image_size))
    table = calibrate_graph(
        model_path,
        refined_path,
        lambda: images.batches(preprocess, size),
        images=len(images),
        data_sha256=images.sha256,
        config=CalibrateConfig(
            effort=request.effort,
            scheme=QuantScheme(exclude=inputs.keep_float),
            collect=CollectConfig(method=request.method, at_once=2, preprocess_sha256=preprocess.sha256),
            refine_threads=2,
            bounds=_proven_bounds,
            placement=search,
        ),
        progress=advance,
    )
    save_table(table_path, table)


def _proven_bounds(model: ModelProto) -> dict[str, float]:
    from edge.stability.bound_propagation import propagate_bounds
    from edge.stability.finders.xnorm import find_sites

    return {name: proof.largest for name, proof in propagate_bounds(model, find_sites(model)).items()}
