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
from edge.pipeline.open_network import Network
from edge.pipeline.steps.type_fp16 import type_as_certified
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from engines.build_folder.file_names import CERTIFICATE, FP16_PLAN, SPEED, TYPED
from engines.build_folder.folder import BuildFolder
from engines.hardware import versions
from engines.speed_estimate import FP16_PLAN_ARTIFACT, Fp16Plan, describe_fp16, make_estimate


def fp16_step(request: BuildRequest, network: Network, workspace: Workspace, graph: str) -> Step:
    """The step as `edge.pipeline.build` runs it; `graph` is the certified float graph, before its quantization."""
    reads = {
        "onnx": workspace.sha256(graph),
        "certificate": workspace.sha256(CERTIFICATE),
        "target": request.target.name,
        "batch": [request.batch.min, request.batch.opt, request.batch.max],
        "builder": request.builder.as_json(request.target, request.out),
        "versions": versions("tensorrt_rtx"),
    }
    return Step("fp16", reads, (FP16_PLAN,), partial(build_fp16, request, network, graph))


def build_fp16(request: BuildRequest, network: Network, graph: str, out: Path, advance: Advance) -> None:
    """Float graph -> fp16_plan.json in the folder `out`, with the reason where the graph has no FP16 engine."""
    from calib.graph import load_graph
    from engines.backends import load_backend
    from engines.build_spec import BuildSpec
    from engines.layer_requests import graph_facts

    backend, folder = load_backend(request.target.backend), request.out
    model, data = load_graph(folder / graph)
    options = request.builder.options(request.target, folder)
    spec = BuildSpec(folder / graph, request.target, "fp16", request.batch, options=options)
    try:
        typed = type_as_certified(model, request, network)
        typed_data = typed.SerializeToString(deterministic=True)
        built = backend.build(spec, typed_data, advance)
        facts = graph_facts(typed)
        plan = describe_fp16(sha256_bytes(data), backend.evidence(built.data, typed_data, facts), facts.layers)
    except GraphError as error:  # a weight that only INT8 can hold, for one: the INT8 engine is none the worse for it
        plan = Fp16Plan(sha256_bytes(data), None, None, str(error).splitlines()[0])
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
