"""speed (int8 for TensorRT-RTX): the plan of the FP16 engine, built beside the INT8 engine and not kept -> speed.json."""

from functools import partial
from pathlib import Path

from calib.artifact import write_artifact
from calib.errors import GraphError
from calib.files import sha256_bytes
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.steps.type_fp16 import fp32_islands
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from engines.build_folder.file_names import SPEED, TYPED, XNORM
from engines.hardware import versions


def speed_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, graph: str) -> Step:
    """The step as `edge.pipeline.build` runs it; `graph` is the float graph before its quantization."""
    certified = workspace.made(XNORM)
    reads = {
        "onnx": workspace.sha256(graph),
        "engine": workspace.sha256(request.engine_file),
        "batch": [request.batch.min, request.batch.opt, request.batch.max],
        "versions": versions("tensorrt_rtx"),
    }
    return Step("speed", reads, (SPEED,), partial(estimate_speed, request, inputs, graph, certified))


def estimate_speed(
    request: BuildRequest, inputs: BuildInputs, graph: str, certified: bool, out: Path, advance: Advance
) -> None:
    """Engine and float graph -> speed.json in the folder `out`, with the reason where the graph has no FP16 engine."""
    from calib.graph import load_graph
    from engines.backends import load_backend
    from engines.build_spec import BuildSpec
    from engines.layer_requests import graph_facts
    from engines.speed_estimate import SpeedEstimate, make_estimate
    from engines.typed_graph import type_graph

    backend, folder = load_backend(request.target.backend), request.out
    engine = (folder / request.engine_file).read_bytes()
    model, _ = load_graph(folder / graph)
    islands = fp32_islands(model, inputs, folder) if certified else frozenset[str]()
    try:
        typed = type_graph(model, keep_fp32=islands)
        data = typed.SerializeToString()
        spec = BuildSpec(folder / graph, request.target, "fp16", request.batch)
        built = backend.build(spec, data, lambda share: advance(0.9 * share))
    except GraphError as error:  # a weight that only INT8 can hold: the INT8 engine is none the worse for it
        write_artifact(out / SPEED, SpeedEstimate(sha256_bytes(engine), None, (), str(error).splitlines()[0]))
        return
    fp16 = backend.evidence(built.data, data, graph_facts(typed))
    quantized, quantized_data = load_graph(folder / TYPED)
    facts = graph_facts(quantized)
    int8 = backend.evidence(engine, quantized_data, facts)
    write_artifact(out / SPEED, make_estimate(sha256_bytes(engine), int8, fp16, facts.layers, request.target.name))
