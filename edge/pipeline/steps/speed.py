"""Is INT8 worth it? (int8, where engines are built without a GPU and report their steps)

fp16    the float graph -> fp16_plan.json: the FP16 engine, built, read and not kept
speed   engine + fp16_plan.json -> speed.json, the expected speed on each target

Scales and float layers do not change the FP16 engine, so that it is built before calibration, and not again for other scales.
"""

from functools import partial
from pathlib import Path

from calib.artifact import write_artifact
from calib.errors import GraphError
from calib.files import sha256_bytes
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.step_counter import StepCounter
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from engines.build_folder.file_names import FP16_PLAN, SPEED, TYPED
from engines.build_folder.folder import BuildFolder
from engines.speed_estimate import FP16_PLAN_ARTIFACT, Fp16Plan, describe_fp16, make_estimate


def fp16_step(counter: StepCounter, workspace: Workspace, graph: str) -> Step:
    """The step as `edge.pipeline.build` runs it; `graph` is the certified float graph, before its quantization."""
    reads = {"onnx": workspace.sha256(graph), **counter.reads(workspace)}
    return Step("fp16", reads, (FP16_PLAN,), partial(build_fp16, counter, graph))


def build_fp16(counter: StepCounter, graph: str, out: Path, advance: Advance) -> None:
    """Float graph -> fp16_plan.json in the folder `out`, with the reason where the graph has no FP16 engine."""
    from calib.graph import load_graph

    model, data = load_graph(counter.request.out / graph)
    onnx_sha256 = sha256_bytes(data)
    try:
        engine = counter.build(model, "fp16", graph, advance)
        plan = describe_fp16(onnx_sha256, engine.evidence, engine.facts.layers)
    except GraphError as error:  # a weight that only INT8 can hold, for one: the INT8 engine is none the worse for it
        plan = Fp16Plan(onnx_sha256, None, None, str(error).splitlines()[0])
    write_artifact(out / FP16_PLAN, plan)


def speed_step(request: BuildRequest, workspace: Workspace) -> Step:
    """The step as `edge.pipeline.build` runs it."""
    reads = {
        "engine": workspace.sha256(request.engine_file),
        "fp16": workspace.sha256(FP16_PLAN),
        "target": request.target.name,
    }
    return Step("speed", reads, (SPEED,), partial(estimate_speed, request))


def estimate_speed(request: BuildRequest, out: Path, advance: Advance) -> None:
    """Engine and fp16_plan.json -> speed.json in the folder `out`."""
    from calib.graph import load_graph
    from engines.backends import load_backend
    from engines.layer_requests import graph_facts

    folder = request.out
    engine = (folder / request.engine_file).read_bytes()
    fp16 = BuildFolder(folder, building=True).read(FP16_PLAN_ARTIFACT)
    quantized, data = load_graph(folder / TYPED)
    facts = graph_facts(quantized)
    int8 = load_backend(request.target.backend).evidence(engine, data, facts)
    advance(0.5)
    write_artifact(out / SPEED, make_estimate(sha256_bytes(engine), int8, facts.layers, fp16, request.target.name))
