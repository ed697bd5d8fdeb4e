"""type (fp16, and int8 for a GPU): the last graph + xnorm.json -> model.typed.onnx, strongly typed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from engines.build_folder.file_names import REFINED, TYPED, XNORM

if TYPE_CHECKING:
    from onnx import ModelProto


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
    from engines.typed_graph import type_graph

    folder, path = request.out, request.out / graph
    model, _ = load_graph(path)
    islands = fp32_islands(model, inputs, folder) if certified else frozenset[str]()
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


def fp32_islands(model: ModelProto, inputs: BuildInputs, folder: Path) -> frozenset[str]:
    """The nodes of a certified graph that the certificate in `folder` keeps in FP32."""
    from edge.stability.certificate import read_certificate
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import fp32_nodes

    sites = find_sites(model, inputs.network.xnorm_sites, inputs.network.xnorm_kv_axis)
    return fp32_nodes(model, sites, read_certificate(folder / XNORM).island_names)


def _check_output(path: Path, name: str, unquantized: Float32, graph: Float32, typed: Float32) -> None:
    """Compare one output of the typed graph; `unquantized` is that of the graph before it was quantized, or `graph` itself.

    Raises VerdictError where typing has cost too much.
    """
    from calib.metrics import sqnr_db

    allowed = min(TYPED_FP16_SQNR_DB, sqnr_db(unquantized, graph) - TYPED_INT8_LOSS_DB)
    measured = sqnr_db(unquantized, typed) if np.isfinite(typed).all() else float("nan")
    if not measured >= allowed:
        raise VerdictError(
            "the FP16 graph's outputs differ too much from the FP32 graph's",
            where=path,
            found=f"SQNR of output {name} {measured:.1f} dB, roundings emulated",
            allowed=f"at least {allowed:.1f} dB",
            next_command="ufovit build with precision fp32, and compare the layers' ranges in its report",
        )
