"""Steps that make graphs: export, certify, calibrate, quantize, type. Heavy libraries are imported when used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calib.artifact import write_artifact
from calib.errors import InputError, VerdictError
from calib.files import sha256_file, write_bytes
from edge.images.labelled_images import data_digest
from edge.numeric_tolerances import TYPED_FP16_SQNR_DB, TYPED_INT8_LOSS_DB
from edge.pipeline.build_request import BuildInputs, BuildRequest
from edge.progress import Advance
from edge.runtime.ort_runner import tapped_batch

if TYPE_CHECKING:
    from onnx import ModelProto

    from calib.qdq_placement import QuantScheme

CHECK_IMAGES = 32
"""Images on which export and typing are checked."""
LISTED_SITES = 4


def export(
    request: BuildRequest, inputs: BuildInputs, model_path: Path, record_path: Path, golden_path: Path, advance: Advance
) -> None:
    """Checkpoint -> ONNX, checked against torch; and the golden pair of the first calibration image."""
    from edge.images.golden_pair import make_golden, write_golden
    from edge.model.checkpoint import load_checkpoint, random_network
    from edge.model.export import export_onnx

    info = inputs.info
    if info.random_weights and not info.file:
        network = random_network(info.config, request.seed)
    else:
        network, loaded = load_checkpoint(Path(info.file), model=info.config.name, image_size=info.config.image_size)
        if loaded.sha256 != info.sha256:  # the manifest would name a checkpoint that these weights do not come from
            raise InputError(
                "checkpoint changed during the build",
                where=info.file,
                next_command="run the same command again",
            )
    advance(0.1)
    (images,) = inputs.calib_images.take(CHECK_IMAGES).batches(info.preprocess, CHECK_IMAGES)
    write_artifact(record_path, export_onnx(network, model_path, images, info))
    write_golden(golden_path, make_golden(inputs.calib_images.pixels(0), info.preprocess))


@dataclass(frozen=True)
class TypingPaths:
    """Files of the step `type`: the graph to type, the float graph that it quantizes (None for one without Q/DQ), the
    certificate, and the typed graph to write."""

    graph: Path
    unquantized: Path | None
    certificate: Path
    typed: Path


def certify(
    request: BuildRequest, inputs: BuildInputs, model_path: Path, certificate_path: Path, folded_path: Path, advance: Advance
) -> None:
    """FP32 graph -> certificate of every XNorm, and the graph folded so that FP16 can compute it.

    Raises VerdictError when some XNorm stays unstable: no engine is to be made of such a graph.
    """
    import onnx

    from calib.qdq_writer import serialize
    from edge.stability.certify import CertifyConfig, certify_graph, image_budget

    model, info = onnx.load(model_path), inputs.info
    images = inputs.calib_images.take(image_budget(model, len(inputs.calib_images)))
    done = certify_graph(
        model,
        images.batches(info.preprocess, tapped_batch(info.config.image_size)),
        data_sha256=data_digest(images, info.preprocess),
        onnx_sha256=sha256_file(model_path),
        config=CertifyConfig(
            precisions=request.certified_precisions,
            expected_sites=info.config.xnorm_sites,
            kv_axis=info.config.xnorm_kv_axis,
        ),
        progress=lambda count: advance(0.8 * count / len(images)),
    )
    unstable = [
        f"{site.name}, {name}: {site.verdicts[name].reason}"
        for site in done.certificate.sites
        for name in request.certified_precisions
        if site.verdicts[name].verdict == "unstable"
    ]
    if unstable:
        raise VerdictError(
            f"XNorm is unstable in {' and '.join(request.certified_precisions)}, and folding powers of two cannot mend it",
            where=model_path,
            found="; ".join(unstable[:LISTED_SITES]) + f" ({len(unstable)} in all)",
            next_command=f"ufovit build {request.model} fp32; the checkpoint's weights at these layers are the cause",
        )
    write_bytes(folded_path, serialize(done.model))
    write_artifact(certificate_path, done.certificate)


def calibrate(
    request: BuildRequest, inputs: BuildInputs, model_path: Path, refined_path: Path, table_path: Path, advance: Advance
) -> None:
    """Float graph and calibration images -> refined float graph, calibration table."""
    from calib.calibration_table import save_table
    from calib.collect import CollectConfig
    from calib.quantize import CalibrateConfig, calibrate_graph

    images, preprocess = inputs.calib_images, inputs.info.preprocess
    size = tapped_batch(inputs.info.config.image_size)
    table = calibrate_graph(
        model_path,
        refined_path,
        lambda: images.batches(preprocess, size),
        images=len(images),
        data_sha256=images.sha256,
        config=CalibrateConfig(
            effort=request.effort,
            scheme=quantization_scheme(request),
            collect=CollectConfig(method=request.method, at_once=2, preprocess_sha256=preprocess.sha256),
            refine_threads=2,
            bounds=_proven,
        ),
        progress=advance,
    )
    save_table(table_path, table)


def quantization_scheme(request: BuildRequest) -> QuantScheme:
    """What the request has quantized."""
    from calib.qdq_placement import QuantScheme

    return QuantScheme(exclude=request.keep_float)


def _proven(model: ModelProto) -> dict[str, float]:
    from edge.stability.bound_propagation import propagate_bounds
    from edge.stability.finders.xnorm import find_sites

    return {name: proof.largest for name, proof in propagate_bounds(model, find_sites(model)).items()}


def quantize(request: BuildRequest, model_path: Path, table_path: Path, quantized_path: Path, advance: Advance) -> None:
    """Float graph and table -> Q/DQ graph, linted. Raises VerdictError when a layer would not run in INT8."""
    import onnx

    from calib.calibration_table import check_table, load_table
    from calib.qdq_writer import serialize
    from calib.quantize import quantize_graph
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import quantized_before_norm

    model, table = onnx.load(model_path), load_table(table_path)
    check_table(table, onnx_sha256=sha256_file(model_path))
    advance(0.2)
    quantized = quantize_graph(model, table, quantization_scheme(request), quantized_path)
    in_front = quantized_before_norm(quantized, find_sites(quantized))
    if in_front:
        raise VerdictError(
            "Q/DQ stands in front of an XNorm: one scale for vectors of all lengths",
            where=quantized_path,
            found=", ".join(in_front[:LISTED_SITES]),
            allowed="Q/DQ behind the norm",
        )
    write_bytes(quantized_path, serialize(quantized))


def type_fp16(inputs: BuildInputs, paths: TypingPaths, advance: Advance) -> None:
    """Graph -> strongly typed FP16 graph, FP32 where the certificate asks for it; its roundings emulated on images.

    Raises VerdictError when it does not compute what the graph computes. An INT8 graph is compared by way of its float graph: a
    rounding of FP16 moves some codes by one, which is no fault as long as the error against float stays what it was.
    """
    import onnx

    from calib.metrics import sqnr_db
    from calib.qdq_writer import serialize
    from edge.runtime.ort_runner import OrtRunner, emulated_runner
    from edge.stability.certificate import read_certificate
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import fp32_nodes
    from engines.typed_graph import type_graph

    model = onnx.load(paths.graph)
    sites = find_sites(model, inputs.info.config.xnorm_sites, inputs.info.config.xnorm_kv_axis)
    kept = read_certificate(paths.certificate).island_names
    typed = type_graph(model, keep_fp32=fp32_nodes(model, sites, kept))
    advance(0.5)
    (images,) = inputs.calib_images.take(CHECK_IMAGES).batches(inputs.info.preprocess, CHECK_IMAGES)
    answers = emulated_runner(typed, paths.typed)(images)
    wanted = OrtRunner(paths.graph)(images)
    allowed = TYPED_FP16_SQNR_DB
    if paths.unquantized is not None:
        unquantized = OrtRunner(paths.unquantized)(images)
        allowed = min(allowed, sqnr_db(unquantized, wanted) - TYPED_INT8_LOSS_DB)
        wanted = unquantized
    found = sqnr_db(wanted, answers) if np.isfinite(answers).all() else float("nan")
    if not found >= allowed:
        raise VerdictError(
            "the FP16 graph does not compute what the FP32 graph computes",
            where=paths.graph,
            found=f"SQNR of the logits {found:.1f} dB, roundings emulated",
            allowed=f"at least {allowed:.1f} dB",
            next_command="ufovit build with precision fp32, and compare the layers' ranges in its report",
        )
    write_bytes(paths.typed, serialize(typed))
