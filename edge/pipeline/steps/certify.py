"""certify (fp16, int8): model.onnx + calibration images -> xnorm.json, model.folded.onnx, which FP16 can compute."""

from functools import partial
from pathlib import Path

from calib.artifact import write_artifact
from calib.errors import VerdictError
from calib.files import sha256_file, write_bytes
from edge.images.labelled_images import data_digest
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from edge.runtime.ort_runner import tapped_batch
from engines.build_folder.file_names import FOLDED, MODEL, XNORM
from engines.hardware import versions

_LISTED_SITES = 4


def certify_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace) -> Step:
    """The step as `edge.pipeline.build` runs it."""
    reads = {
        "onnx": workspace.sha256(MODEL),
        "images": inputs.calib_images.sha256,
        "preprocess": inputs.network.preprocess.sha256,
        "precisions": list(request.certified_precisions),
        "versions": versions("onnx", "onnxruntime", "numpy"),
    }
    return Step("certify", reads, (XNORM, FOLDED), partial(certify_model, request, inputs))


def has_xnorms(inputs: BuildInputs, path: Path) -> bool:
    """Whether the graph at `path` divides by an L2 norm: without, there is nothing to certify."""
    if inputs.network.info is not None:
        return True
    from calib.graph import load_graph
    from edge.stability.finders.xnorm import find_sites

    return bool(find_sites(load_graph(path)[0]))


def certify_model(request: BuildRequest, inputs: BuildInputs, out: Path, advance: Advance) -> None:
    """FP32 graph -> certificate and folded graph in the folder `out`.

    Raises VerdictError when an XNorm stays unstable: an engine of such a graph would overflow or underflow.
    """
    from calib.graph import load_graph
    from calib.qdq_writer import serialize
    from edge.stability.certify import CertifyConfig, certify_graph, image_budget

    path, network = request.out / MODEL, inputs.network
    preprocess = network.preprocess
    model, _ = load_graph(path)
    images = inputs.calib_images.take(image_budget(model, len(inputs.calib_images)))
    done = certify_graph(
        model,
        images.batches(preprocess, network.batch(tapped_batch(preprocess.image_size))),
        data_sha256=data_digest(images, preprocess),
        onnx_sha256=sha256_file(path),
        config=CertifyConfig(
            precisions=request.certified_precisions,
            expected_sites=network.xnorm_sites,
            kv_axis=network.xnorm_kv_axis,
            where=path,
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
            f"XNorm is unstable in {' and '.join(request.certified_precisions)}, and folding powers of two cannot repair it",
            where=path,
            found="; ".join(unstable[:_LISTED_SITES]) + f" ({len(unstable)} in all)",
            next_command=f"ufovit build {request.model} fp32; the checkpoint's weights at these layers are the cause",
        )
    write_bytes(out / FOLDED, serialize(done.model))
    write_artifact(out / XNORM, done.certificate)
