#!/usr/bin/env python3
"""Certify networks of other libraries, as exported, and compare the verdicts with the networks run in half precision by torch.

    python scripts/bench/certify_strangers.py FOLDER... PHOTOS [--networks GLOB] [--images 16] [--seconds 300] [--table FILE]

FOLDER: NAME.onnx and NAME.json of strangers/export_network.py. Every network is certified on photos without a target and with
`--target rtx`, unrepaired, in a process of its own, and then run by torch_network in FP16: as exported, and as the import
leaves it, which is what is certified. Nothing is written into FOLDER: results go to --results, and a network that has one there
is not run again. Then prints the table, in Markdown.

With --exponent the same for networks that FP16 destroys: the weights of their layers are multiplied. They are repaired too.

False alarm: unstable, though torch loses nothing of the network as imported (every output finite, at least 30 dB); without a
target the emulation, which then has FP16 statistics, must lose nothing either.
Missed: stable, though torch loses its outputs (NaN, infinity, or below 20 dB).
"""

from __future__ import annotations

import argparse
import sys
import time
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts/bench"), str(ROOT / "scripts/bench/strangers")]

from certify_strangers_table import write_table
from run_command import run_limited

from calib.files import write_bytes, write_json
from calib.json_reader import read_json

if TYPE_CHECKING:
    import onnx
    import torch

    from edge.stability.float_formats import Float32
    from edge.stability.instrumented_graph import Tensors
    from edge.stability.network_certificate import NetworkCertificate

TARGETS: dict[str, str | None] = {"none": None, "rtx": "trt_rtx"}
AS_IN_ORT_DB = 60.0
"""Least SQNR of torch's FP32 outputs against ONNX Runtime's: below it the oracle computes another network."""
Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Certify networks of other libraries; compare with torch in half precision.")
    parser.add_argument("folder", type=Path, nargs="+", help="folders of networks, then the folder of photos")
    parser.add_argument("--networks", default="*", help="comma-separated globs of names")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--half-images", type=int, default=4, help="images that torch runs in half precision")
    parser.add_argument("--exponent", type=int, default=0, help="multiply the weights of all layers by 2 to this power")
    parser.add_argument("--seconds", type=float, default=300, help="limit of one network")
    parser.add_argument("--results", type=Path, default=ROOT / "build/certify-strangers")
    parser.add_argument("--table", type=Path, default=None, help="Markdown file")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    *folders, photos = args.folder
    if args.one:
        certify_one(args.one, photos, args)
        return
    graphs = [graph for folder in folders for graph in folder.glob("*.onnx") if graph.with_suffix(".json").is_file()]
    for graph in sorted(graphs, key=_size):
        path = result_path(graph, args)
        if path.is_file() or not any(fnmatch(graph.stem, glob) for glob in args.networks.split(",")):
            continue
        finished = run_limited([sys.executable, __file__, *sys.argv[1:], "--one", str(graph)], args.seconds)
        results: Results = read_json(path) if path.is_file() else {}
        if finished.exit_code != 0:
            why = "time limit" if finished.exit_code is None else " ".join(finished.lines[-1:])
            results["error"] = f"{why} after {finished.seconds:.0f} s"
        write_json(path, {**results, "name": path.stem, "seconds": finished.seconds})
        print(path.stem, {name: results.get(name) for name in ("none", "rtx", "half", "error")}, flush=True)
    table = write_table([read_json(path) for path in sorted(args.results.glob("*.json"))], args.images, args.half_images)
    if args.table:
        write_bytes(args.table, table.encode())
    print(table)


def result_path(graph: Path, args: argparse.Namespace) -> Path:
    """Of a network, its weights scaled or not."""
    suffix = f", weights x 2^{args.exponent}" if args.exponent else ""
    path: Path = args.results / f"{graph.stem}{suffix}.json"
    return path


def scaled(model: onnx.ModelProto, exponent: int) -> onnx.ModelProto:
    """A network with the weights of Conv, Gemm and MatMul times 2^exponent: FP16 loses more and more of such networks."""
    from onnx import numpy_helper

    weights = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    for tensor in model.graph.initializer if exponent else ():
        if tensor.name in weights:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(2.0**exponent), tensor.name))
    return model


def _size(graph: Path) -> int:
    data = graph.with_name(f"{graph.name}.data")
    return sum(file.stat().st_size for file in (graph, data) if file.is_file())


def certify_one(graph: Path, photos: Path, args: argparse.Namespace) -> None:
    """Certify one network for every target and run it in half precision; write what is known after every step."""
    import numpy as np

    from edge.pipeline.certify_inputs import resolve
    from edge.pipeline.network_options import InputOptions
    from edge.runtime.ort_runner import tapped_batch
    from edge.stability.certify import CertifyConfig
    from edge.stability.network_certification import certify_network

    facts, path = read_json(graph.with_suffix(".json")), result_path(graph, args)
    height, width = facts["size"]
    free = set(facts["free"]) & {"height", "width"}
    options = InputOptions(
        mean=_listed(facts["mean"]),
        std=_listed(facts["std"]),
        **({"input_shape": (f"input=1x3x{height}x{width}",), "resize": max(height, width)} if free else {}),
    )
    start = time.monotonic()
    inputs = resolve(graph, photos, args.images, options)
    model = scaled(inputs.model, args.exponent)
    results: Results = {"name": path.stem, "exporter": facts["exporter"], "versions": facts["versions"]}
    results["import_seconds"] = time.monotonic() - start
    batch = inputs.batch or tapped_batch(inputs.preprocess.image_size)
    for name, backend in TARGETS.items():
        start = time.monotonic()
        done = certify_network(
            model,
            lambda: inputs.images.batches(inputs.preprocess, batch),
            interval=inputs.preprocess.interval(),
            data_sha256="0" * 64,
            onnx_sha256=inputs.sha256,
            config=CertifyConfig(("fp16",), backend=backend, repair=bool(args.exponent)),
        )
        results[name] = {**summarize(done.certificate), "seconds": time.monotonic() - start}
        write_json(path, results)
    images = np.concatenate(list(inputs.images.take(args.half_images).batches(inputs.preprocess, 1)))
    results["half"] = compare_half(model, images, args.exponent)
    write_json(path, results)
    if not free and not args.exponent:
        results["half_exported"] = compare_half(load(graph), images)
        write_json(path, results)


def _listed(values: list[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def load(graph: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load(graph)


def summarize(certificate: NetworkCertificate) -> Results:
    """What the table shows of a certificate: the network as it is, and as it was repaired, if it was."""
    from edge.stability.verdict import STABILITIES

    sites = {(site.kind, site.name): site for site in (*certificate.sites, *certificate.before)}
    judged = [(site, site.verdicts["fp16"]) for site in sites.values()]
    worst = max(judged, key=lambda item: STABILITIES.index(item[1].verdict))
    networks, cover = certificate.emulated, certificate.coverage
    assert networks.before is not None
    return {
        "verdict": certificate.verdict_before,
        "counts": {name: sum(judgement.verdict == name for _, judgement in judged) for name in STABILITIES},
        "worst": "" if worst[1].verdict == "stable" else f"{worst[0].kind} {worst[0].name}: {worst[1].reason}",
        "proven": [cover.certified, cover.judged, cover.stored],
        "unjudged": len(certificate.unjudged),
        "sqnr_db": networks.before.sqnr_db,
        "not_finite": networks.before.not_finite,
        "refusal": networks.before.refusal,
        "repaired": None if networks.after is None else {"verdict": certificate.verdict, "sqnr_db": networks.after.sqnr_db},
    }


def compare_half(model: onnx.ModelProto, images: Float32, exponent: int = 0) -> Results:
    """The network in torch's half precision against its FP32 outputs of ONNX Runtime, on images one at a time.

    Weights times 2^exponent can make a network magnify rounding so much that FP32 cannot be the reference. Then float64 is, if
    torch gives the outputs of ONNX Runtime without that factor: it computes the same nodes.
    """
    import torch

    from edge.stability.fp16_network import compare_outputs, fp32_outputs

    start = time.monotonic()
    torch.set_num_threads(1)
    expected = fp32_outputs(model, images)
    try:
        single = compare_outputs(expected[:1], _torch_outputs(model, images[:1], torch.float32))
        half = _torch_outputs(model, images, torch.float16)
    except KeyError as error:
        return {"refusal": f"no {error.args[0]} in torch_operators"}
    exact = {}
    if not single.sqnr_db >= AS_IN_ORT_DB:
        plain = scaled(deepcopy(model), -exponent)
        alike = compare_outputs(fp32_outputs(plain, images[:1]), _torch_outputs(plain, images[:1], torch.float32))
        if not exponent or not alike.sqnr_db >= AS_IN_ORT_DB:
            return {"refusal": f"torch computes another network: {alike}"}
        single, expected = alike, _torch_outputs(model, images, torch.float64)
        exact = {"fp32_of_float64_db": compare_outputs(expected, fp32_outputs(model, images)).sqnr_db}
    found = compare_outputs(expected, half)
    return {
        "images": found.images,
        "not_finite": found.not_finite,
        "sqnr_db": found.sqnr_db if found.not_finite < found.images else None,
        "single_db": min(single.sqnr_db, 200.0),
        "seconds": time.monotonic() - start,
        **exact,
    }


def _torch_outputs(model: onnx.ModelProto, images: Float32, dtype: torch.dtype) -> list[Tensors]:
    """Outputs of torch, image after image, shaped as `fp32_outputs` gives them."""
    import torch
    from torch_network import TorchNetwork

    network = TorchNetwork(model, dtype)
    with torch.inference_mode():
        answers = [network(torch.from_numpy(image[None])) for image in images]
    rows = [{name: values.numpy() for name, values in row.items()} for row in answers]
    return [{name: values[0] if len(values) == 1 else values for name, values in row.items()} for row in rows]


if __name__ == "__main__":
    main()
