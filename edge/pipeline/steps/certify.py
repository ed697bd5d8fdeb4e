"""certify (fp16, int8): model.onnx + calibration images -> certificate.json, model.folded.onnx, which FP16 can compute.

A network with XNorms gets xnorm.json too, which a later release will leave out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calib.artifact import write_artifact
from calib.errors import VerdictError
from calib.files import sha256_file, write_bytes
from edge.images.labelled_images import data_digest
from edge.onnx_import.import_record import IMPORT_ARTIFACT
from edge.pipeline.build_inputs import BuildInputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.request_checks import ISLANDS
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from edge.runtime.ort_runner import tapped_batch
from engines.build_folder.file_names import CERTIFICATE, FOLDED, MODEL, XNORM
from engines.build_folder.folder import BuildFolder
from engines.hardware import versions

if TYPE_CHECKING:
    from edge.stability.network_certificate import NetworkCertificate

_LISTED_SITES = 4


def certify_step(request: BuildRequest, inputs: BuildInputs, workspace: Workspace) -> Step | None:
    """The step as `edge.pipeline.build` runs it; None where nothing computes in 16 bits and no XNorm in 8."""
    xnorms = has_xnorms(inputs, request.out)
    if request.precision == "fp32" or not (xnorms or "fp16" in request.certified_precisions):
        return None
    reads = {
        "onnx": workspace.sha256(MODEL),
        "images": inputs.calib_images.sha256,
        "preprocess": inputs.network.preprocess.sha256,
        "precisions": list(request.certified_precisions),
        "backend": request.target.backend,
        "versions": versions("onnx", "onnxruntime", "numpy"),
        **({"islands": request.islands} if request.islands != "unstable" else {}),
    }
    writes = (CERTIFICATE, *((XNORM,) if xnorms else ()), FOLDED)
    return Step("certify", reads, writes, partial(certify_model, request, inputs))


def has_xnorms(inputs: BuildInputs, folder: Path) -> bool:
    """Whether the network in a build folder divides by an L2 norm that can be judged."""
    return inputs.network.info is not None or BuildFolder(folder, building=True).read(IMPORT_ARTIFACT).judged_norms > 0


def certify_model(request: BuildRequest, inputs: BuildInputs, out: Path, advance: Advance) -> None:
    """FP32 graph -> certificates and repaired graph in the folder `out`.

    Raises VerdictError when the network stays unstable: an engine of such a graph would overflow or underflow.
    """
    from calib.graph import load_graph
    from calib.qdq_writer import serialize
    from edge.stability.certify import CertifyConfig, image_budget
    from edge.stability.fp16_network import IMAGES
    from edge.stability.network_certification import certify_network

    path, network = request.out / MODEL, inputs.network
    preprocess = network.preprocess
    model, _ = load_graph(path)
    images = inputs.calib_images.take(image_budget(model, len(inputs.calib_images)))
    done = certify_network(
        model,
        lambda: images.batches(preprocess, network.batch(tapped_batch(preprocess.image_size))),
        interval=preprocess.interval(),
        data_sha256=data_digest(images, preprocess),
        onnx_sha256=sha256_file(path),
        config=CertifyConfig(
            precisions=request.certified_precisions,
            expected_sites=network.xnorm_sites,
            kv_axis=network.xnorm_kv_axis,
            where=path,
            backend=request.target.backend,
            islands=ISLANDS[request.islands],
            emulated_images=IMAGES if "fp16" in request.certified_precisions else 0,
        ),
        progress=lambda count: advance(0.8 * count / len(images)),
    )
    if done.certificate.verdict == "unstable":
        raise _unstable_error(request, done.certificate, path)
    write_bytes(out / FOLDED, serialize(done.model))
    write_artifact(out / CERTIFICATE, done.certificate)
    if done.xnorms is not None:
        write_artifact(out / XNORM, done.xnorms)


def _unstable_error(request: BuildRequest, certificate: NetworkCertificate, path: Path) -> VerdictError:
    precisions = request.certified_precisions
    unstable = [
        f"{site.name}, {name}: {site.verdicts[name].reason}"
        for site in certificate.sites
        for name in precisions
        if name in site.verdicts and site.verdicts[name].verdict == "unstable"
    ]
    listed = "; ".join(unstable[:_LISTED_SITES]) + f" ({len(unstable)} in all)" if unstable else ""
    return VerdictError(
        f"the network is unstable in {' and '.join(precisions)}, and no repair makes it stable",
        where=path,
        found=listed or f"FP16 emulated: {certificate.emulated.after}",
        next_command=f"ufovit build {request.model} fp32; the checkpoint's weights at these layers are the cause",
    )
