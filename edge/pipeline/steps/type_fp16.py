"""type (fp16, and int8 for a GPU): the last graph + certificate.json -> model.typed.onnx, strongly typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calib.errors import VerdictError
from calib.files import write_bytes
from calib.metrics import power_ratio_db
from edge.numeric_tolerances import TYPED_FP16_SQNR_DB, TYPED_INT8_LOSS_DB
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.open_network import Network
from edge.pipeline.steps.export import CHECK_IMAGES
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from edge.runtime.runner import Runner
from engines.build_folder.file_names import CERTIFICATE, REFINED, TYPED

if TYPE_CHECKING:
    from onnx import ModelProto

_MERGES_LAYOUTS = ("trt_rtx",)
"""Backends that take fewer steps with the layouts of `engines.token_layouts`: where that is measured."""


def type_fp16_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace, graph: str) -> Step:
    """The step as `edge.pipeline.build` runs it on the file `graph`."""
    certificate = workspace.sha256(CERTIFICATE)
    reads = {"onnx": workspace.sha256(graph), "images": inputs.calib_images.sha256, "certificate": certificate}
    return Step("type", reads, (TYPED,), partial(type_model, request, inputs, graph))


def type_model(request: BuildRequest, inputs: BuildInputs, graph: str, out: Path, advance: Advance) -> None:
    """Graph -> strongly typed FP16 graph in the folder `out`, FP32 where the certificate asks for it; roundings emulated.

    Raises VerdictError when its outputs differ too much from the graph's. An INT8 graph is compared through its float graph: an
    FP16 rounding moves some codes by one, which is not a fault as long as the error against float does not grow.
    """
    from calib.graph import load_graph
    from calib.qdq_writer import serialize
    from edge.runtime.ort_runner import OrtRunner, emulated_runner

    folder, path = request.out, request.out / graph
    model, _ = load_graph(path)
    typed = type_as_certified(model, request, inputs.network)
    advance(0.5)
    network = inputs.network
    batches = inputs.calib_images.take(CHECK_IMAGES).batches(network.preprocess, network.batch(CHECK_IMAGES))
    graph_runner = OrtRunner(path)
    unquantized = OrtRunner(folder / REFINED) if request.precision == "int8" else graph_runner
    names = [value.name for value in typed.graph.output]
    check_typing(path, names, (unquantized, graph_runner, emulated_runner(typed, folder / TYPED)), batches)
    write_bytes(out / TYPED, serialize(typed))


def type_as_certified(model: ModelProto, request: BuildRequest, network: Network) -> ModelProto:
    """Strongly typed FP16 graph, FP32 where the build's certificate asks for it. Raises what `type_graph` raises."""
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import fp32_nodes
    from edge.stability.network_certificate import read_network_certificate
    from engines.token_layouts import merge_layouts
    from engines.typed_graph import type_graph

    certificate = read_network_certificate(request.out / CERTIFICATE)
    islands = frozenset(certificate.fp32_nodes) & {node.name for node in model.graph.node}
    if certificate.xnorms:
        sites = find_sites(model, network.xnorm_sites, network.xnorm_kv_axis)
        islands |= fp32_nodes(model, sites, certificate.island_names)
    typed = type_graph(model, keep_fp32=islands)
    return merge_layouts(typed) if request.target.backend in _MERGES_LAYOUTS else typed


def check_typing(
    where: Path, names: Sequence[str], runners: tuple[Runner, Runner, Runner], batches: Iterable[npt.NDArray[Any]]
) -> None:
    """Compare the outputs of three graphs batch by batch: before quantization, the graph that was typed, and the typed one.

    A graph that was not quantized stands in the first two places. Of indices and other integers, no power can be told. Raises
    VerdictError where typing has cost too much, and where the typed graph's output is not finite.
    """
    powers: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in names}
    for batch in batches:
        results = {runner: runner(batch) for runner in dict.fromkeys(runners)}
        for name, *outputs in zip(names, *(results[runner] for runner in runners), strict=True):
            if outputs[0].dtype.kind == "f":
                before, graph, typed = (output.reshape(len(output), -1).astype(np.float64) for output in outputs)
                powers[name].append(
                    np.stack([np.sum(values**2, axis=1) for values in (before, before - graph, before - typed)])
                )
    for name, of_batches in powers.items():
        if of_batches:
            _check_output(where, name, np.concatenate(of_batches, axis=1))


def _check_output(where: Path, name: str, powers: npt.NDArray[np.float64]) -> None:
    """Judge one output by its power before quantization, and those of the graph's error and the typed graph's, (3, images).

    What an INT8 graph loses is that of the median image where that is less than over all images: of a classifier, one image
    between two classes has most of the error's power, and a code that moves by one decides it. A fault of typing is in all.
    """
    signal, graph_noise, typed_noise = powers.sum(axis=1)
    graph_db, typed_db = (power_ratio_db(signal, noise) for noise in (graph_noise, typed_noise))
    allowed = min(TYPED_FP16_SQNR_DB, graph_db - TYPED_INT8_LOSS_DB)
    finite = bool(np.isfinite(signal + typed_noise))
    median_loss_db = float(np.median([power_ratio_db(typed, graph) for _, graph, typed in powers.T]))
    if not finite or (typed_db < allowed and median_loss_db > TYPED_INT8_LOSS_DB):
        raise VerdictError(
            "the FP16 graph's outputs differ too much from the FP32 graph's",
            where=where,
            found=f"SQNR of output {name} {typed_db if finite else np.nan:.1f} dB, roundings emulated",
            allowed=f"at least {allowed:.1f} dB",
            next_command="ufovit build with precision fp32, and compare the layers' ranges in its report",
        )
