"""engine: the last graph -> engine, manifest.json, the record of what the engine is and what it was built from."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from calib.calibration_table import load_table
from calib.files import sha256_bytes, sha256_file, write_bytes
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.builder_options import BuilderRequest
from edge.pipeline.placement_option import default_float_layers
from edge.pipeline.step_counter import StepCounter
from edge.pipeline.steps.drift import judged_on
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from engines.build import BuiltEngine, build
from engines.build_folder.file_names import (
    CALIBRATION,
    CERTIFICATE,
    EXPORT,
    FOLDED,
    IMPORT,
    MANIFEST,
    MODEL,
    QUANTIZED,
    REFINED,
    TYPED,
    XNORM,
)
from engines.build_folder.manifest import CalibrationRecord, EngineManifest, EngineRecord, FileRecord, write_manifest
from engines.build_spec import BuildSpec
from engines.hardware import versions
from engines.select_target import judged_here
from engines.trt.timing_cache import TimingCache

RANDOM_NOTE = "RANDOM WEIGHTS: this engine shows size and numbers, never accuracy"


def engine_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, graph: str, counter: StepCounter) -> Step:
    """The step as `edge.pipeline.build` runs it on the file `graph`."""
    reads = {
        "onnx": workspace.sha256(graph),
        "source": workspace.sha256(EXPORT if inputs.network.imported is None else IMPORT),
        "target": request.target.name,
        "precision": request.precision,
        "batch": [request.batch.min, request.batch.opt, request.batch.max],
        "int8_floor": request.int8_floor,
        "backend": request.target.backend,
        "builder": request.builder.as_json(request.target, request.out),
        "versions": versions(
            "tensorrt_rtx", "tensorrt", "onnxruntime", *(("openvino",) if request.target.backend == "openvino" else ())
        ),
    }
    work = partial(build_engine, counter, request.out / graph, workspace)
    return Step("engine", reads, (request.engine_file, MANIFEST), work)


def build_engine(counter: StepCounter, graph_path: Path, workspace: Workspace, out: Path, advance: Advance) -> None:
    """Graph -> engine and manifest in the folder `out`.

    Raises VerdictError when the receipt is below its floor; then neither is written.
    """
    request, inputs = counter.request, counter.inputs
    target, folder = request.target, request.out
    options = request.builder.options(target, folder)
    floor = int8_floor(request, inputs.keep_float)
    built = build(BuildSpec(graph_path, target, request.precision, request.batch, floor, options), advance, counter.take)
    record = write_engine(out / request.engine_file, built, request.builder, request.builder.cache(target, folder))

    def recorded(file: str) -> FileRecord:
        return FileRecord(file, sha256_file(folder / file))

    network, images = inputs.network, inputs.calib_images
    int8 = request.precision == "int8"
    typed = graph_path.name == TYPED
    calibration = None
    if int8:
        calibration = CalibrationRecord(**vars(recorded(CALIBRATION)), images=len(images), data_sha256=images.sha256)
    judged = judged_on(target.backend, here=judged_here(target), emulated=typed)
    manifest = EngineManifest(
        model=network.name,
        precision=request.precision,
        target=target.name,
        task=network.task.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        checkpoint=FileRecord(Path(network.file).name, network.sha256) if network.file else None,
        onnx=recorded(MODEL),
        certificate=recorded(CERTIFICATE) if workspace.made(CERTIFICATE) else None,
        xnorm=recorded(XNORM) if workspace.made(XNORM) else None,
        folded_onnx=recorded(FOLDED) if workspace.made(FOLDED) else None,
        refined_onnx=recorded(REFINED) if int8 else None,
        qdq_onnx=recorded(QUANTIZED) if int8 else None,
        typed_onnx=recorded(TYPED) if typed else None,
        calibration=calibration,
        engine=record,
        input=built.input,
        outputs=built.outputs,
        preprocess={**network.preprocess.as_json(), "sha256": network.preprocess.sha256},
        labels=network.task.names,
        receipt=built.receipt,
        batch=(built.batch.min, built.batch.opt, built.batch.max),
        int8_floor=floor,
        random_weights=network.random_weights,
        notes=(RANDOM_NOTE, judged) if network.random_weights else (judged,),
    )
    write_manifest(out, manifest)


def int8_floor(request: BuildRequest, keep_float: Sequence[str]) -> float | None:
    """The least INT8 share of the receipt; None for the target's own.

    From the target's own, what the placement or the default of `--keep-float` leaves in float is subtracted: the floor is to
    find layers that the engine does not run in INT8 although the graph asks for it, and patterns of a user that match too much.
    """
    if request.int8_floor is not None or request.precision != "int8":
        return request.int8_floor
    placement, left = load_table(request.out / CALIBRATION).placement, 0.0
    if placement is not None and placement.float_groups:
        left = placement.all_int8.int8_share - placement.chosen.int8_share
    elif request.keep_float is None:
        by_default = set(default_float_layers(request.target)) & set(keep_float)
        left = _share_in_float(request.out / QUANTIZED, by_default) if by_default else 0.0
    return request.target.int8_floor - left if left else None


def _share_in_float(quantized: Path, patterns: Iterable[str]) -> float:
    from calib.graph import load_graph
    from engines.layer_requests import read_layers

    layers = read_layers(load_graph(quantized)[0])
    in_float = [x for x in layers if x.requested != "int8" and any(fnmatchcase(x.name, pattern) for pattern in patterns)]
    return sum(layer.macs for layer in in_float) / (sum(layer.macs for layer in layers) or 1)


def write_engine(path: Path, built: BuiltEngine, builder: BuilderRequest, cache: TimingCache) -> EngineRecord:
    """Write an engine's bytes and its timing cache, each atomically, and return the engine's record."""
    write_bytes(path, built.data)
    cache.write(built.timing_cache)
    return EngineRecord(
        file=path.name,
        sha256=sha256_bytes(built.data),
        bytes=len(built.data),
        backend=built.backend,
        backend_version=built.version,
        compute_capabilities=built.compute_capabilities,
        version_compatible=builder.version_compatible,
        hardware_compatibility=builder.hardware_compatibility,
        timing_cache_sha256=None if built.timing_cache is None else sha256_bytes(built.timing_cache),
        device=built.device,
    )
