"""Pack a build folder and labelled images into a bundle; read the test images and FP32 answers of one."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import ArtifactError, DataError
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.images.golden_pair import GoldenPair, shrunk
from edge.images.labelled_images import ImageSet
from edge.images.preprocess import read_preprocess
from edge.pipeline.build_inputs import judging_images
from edge.pipeline.request_checks import check_answers_fit
from edge.pipeline.verdict_images import open_verdict_images
from edge.progress import Advance
from edge.tasks.budget import Budget
from edge.tasks.registry import task_of
from edge.tasks.task import Outputs
from engines.build_folder.bundle_format import GOLDEN, PIXELS, REMAKE, SHAPES, Bundle, BundleInfo, is_answer, write_bundle
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import MANIFEST_ARTIFACT, EngineManifest, FileRecord, source_graph
from engines.build_folder.verify import verify_folder
from engines.targets import TARGETS

_NUMBERS = ("<f4", "<i8", "<i4", "<i2", "|i1", "|u1", "<u2", "<u4", "<u8")
"""Types of answers: float32 and integers."""
_NPY = ".npy"
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(...)', 'fortran_order': False, 'shape': \((\d{1,12}(?:, \d{1,12})*),?\), \} *\n",
    re.DOTALL,
)
"""Header of an array as `numpy.save` writes it (numpy.lib.format, version 1.0). numpy's own reader evaluates it as Python."""


@dataclass(frozen=True)
class BundledImages:
    """The images of a bundle, the FP32 reference's outputs (n, ...), and the first image as the network sees it.

    `labelled`: whether the images have right answers.
    """

    images: ImageSet
    outputs: Outputs
    golden: GoldenPair
    labelled: bool


def check_packable(build: BuildFolder) -> None:
    """Raise ArtifactError for a folder whose files do not match their records, whose graph no GPU target builds from, or that
    was itself built from a bundle.
    """
    verify_folder(build)
    build.read(DRIFT_ARTIFACT)  # a verdict that contradicts itself is found before images are opened
    manifest = build.manifest
    if manifest.bundle is not None:
        raise ArtifactError(
            "a build from a bundle cannot be bundled again",
            where=build.path,
            found=manifest.bundle.file,
            next_command="use that bundle: it builds for every target",
        )
    if manifest.precision != "fp32" and manifest.typed_onnx is None:
        raise ArtifactError(
            "the build's graph is not typed for a GPU",
            where=build.path,
            found=f"target {manifest.target}",
            allowed=", ".join(t.name for t in TARGETS.values() if t.float_type == "fp16" and not t.refusal),
            next_command=f"ufovit build {manifest.source} {manifest.precision} --target rtx, with the options of this build",
        )


def images_to_pack(build: BuildFolder, data: Path | None) -> ImageSet:
    """Images that judge the engine on the device: those of `data`, else of the verdict on the build. Raises InputError."""
    task, last = task_of(build.manifest), build.read(DRIFT_ARTIFACT)
    if data is not None or (task.labelled and not last.comparison.with_truth):
        return judging_images(data, task)
    return open_verdict_images(last, task, f"ufovit bundle {build.path} --data DIR")


def make_bundle(build: BuildFolder, images: ImageSet, path: Path, advance: Advance) -> BundleInfo:
    """Pack a finished build and images, labelled where its task uses labels, into one file.

    The reference's answers to exactly these images are computed here, by ONNX Runtime on the FP32 graph of the build. Images
    more than twice as large as the network's input are stored at that size: the answers are those to the stored images.

    Raises what `check_packable` raises.
    """
    from edge.runtime.ort_runner import BATCH, OrtRunner, run_all
    from engines.layer_requests import parse_graph

    check_packable(build)
    manifest, drift = build.manifest, build.read(DRIFT_ARTIFACT)
    check_answers_fit(manifest.outputs, len(images), "--images")
    preprocess = read_preprocess(manifest)
    runner = OrtRunner(build.path / manifest.onnx.file, data=build.data(manifest.onnx.file), throughput=True)
    pixels = tuple(shrunk(images.pixels(i), preprocess) for i in range(len(images)))
    starts = range(0, len(pixels), BATCH)
    batches = (np.stack([preprocess(image) for image in pixels[start : start + BATCH]]) for start in starts)
    outputs = run_all(runner, batches, lambda done: advance(done / len(pixels)))
    task = task_of(manifest)
    answers = task.pack_reference(outputs, images.labels if task.labelled else None)
    members = {file: build.data(file) for file in (MANIFEST, *packed_digests(manifest))}
    members |= {
        PIXELS: _npy(np.concatenate([image.ravel() for image in pixels])),
        SHAPES: _npy(np.array([image.shape for image in pixels], np.int64)),
        GOLDEN: _npy(preprocess(pixels[0])),
        **{f"{name}{_NPY}": _npy(array) for name, array in answers.items()},
    }
    graph = source_graph(manifest).file
    info = BundleInfo(
        **_stated(manifest),
        facts=parse_graph(members[graph], build.path / graph)[1],
        budget_points=drift.budget.points,
        reference_ran_on=f"{drift.reference.ran_on}, when the bundle was made",
        data=images.source,
        data_sha256=images.sha256,
        members={},
        budget_sqnr_db=drift.budget.sqnr_db,
        budget_cosine=drift.budget.cosine,
    )
    write_bundle(path, info, members)
    return info


def packed_digests(manifest: EngineManifest) -> dict[str, str]:
    """File -> SHA-256 of what a bundle takes over from a build folder, besides the manifest."""
    records = (source_graph(manifest), manifest.certificate, manifest.xnorm, manifest.calibration)
    return {record.file: record.sha256 for record in records if record is not None}


def _stated(manifest: EngineManifest) -> dict[str, Any]:
    """Fields of `BundleInfo` that repeat the manifest of the build."""
    return {
        "model": manifest.model,
        "precision": manifest.precision,
        "graph": source_graph(manifest).file,
        "batch": manifest.batch,
        "int8_floor": manifest.int8_floor,
        "random_weights": manifest.random_weights,
        "reference": FileRecord(manifest.onnx.file, manifest.onnx.sha256),
    }


def read_source(bundle: Bundle) -> EngineManifest:
    """The manifest of the build that a bundle was made from.

    Raises ArtifactError when bundle.json or a member is of another build, or the accuracy budget is invalid.
    """
    info, where = bundle.info, Path(f"{bundle.path}: {MANIFEST}")
    manifest = MANIFEST_ARTIFACT.parse(bundle.read(MANIFEST), where)
    pairs = {name: (getattr(info, name), value) for name, value in _stated(manifest).items()}
    digests = packed_digests(manifest)
    arrays = {PIXELS, SHAPES, GOLDEN, *filter(is_answer, info.members)}
    for file in sorted({*digests, *(info.members.keys() - {MANIFEST, *arrays})}):
        pairs[file] = (info.members[file].sha256 if file in info.members else None, digests.get(file))
    for name, (found, recorded) in pairs.items():
        if found != recorded:
            raise ArtifactError("the bundle mixes files of two builds", where=f"{where}: {name}", found=found, allowed=recorded)
    if budget_of(bundle).flaw:
        raise ArtifactError("the accuracy budget of the bundle is not one", where=bundle.path, found=budget_of(bundle).flaw)
    return manifest


def budget_of(bundle: Bundle) -> Budget:
    """What a build from the bundle may lose."""
    return Budget(bundle.info.budget_points, bundle.info.budget_sqnr_db, bundle.info.budget_cosine)


def read_bundled_images(bundle: Bundle, source: EngineManifest) -> BundledImages:
    """The images and reference answers of a bundle; `source` is its manifest. Raises ArtifactError when they do not match."""
    flat, shapes = _array(bundle, PIXELS, ("|u1",), 1), _array(bundle, SHAPES, ("<i8",), 2)
    count, sizes = len(shapes), [math.prod(shape) for shape in shapes.tolist()]
    if not count or shapes.shape != (count, 3) or not (shapes > 0).all() or sum(sizes) != len(flat):
        found = f"{len(flat)} pixels, {shapes.shape}"
        raise ArtifactError("the bundle's images do not match", where=bundle.path, found=found, next_command=REMAKE)
    members, task = sorted(filter(is_answer, bundle.info.members)), task_of(source)
    try:
        outputs, truth = task.unpack_reference({n.removesuffix(_NPY): _array(bundle, n, _NUMBERS) for n in members}, count)
    except DataError as error:
        what, where = f"the bundle's images and answers do not match: {error.what}", f"{bundle.path}: {', '.join(members)}"
        raise ArtifactError(what, where=where, found=error, next_command=REMAKE) from error
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    pixels = tuple(part.reshape(shape) for part, shape in zip(parts, shapes.tolist(), strict=True))
    info, names = bundle.info, tuple(map(str, range(count)))
    labels = np.zeros(count, np.int64) if truth is None else truth
    images = ImageSet(
        f"{count} images of {info.data}, in {bundle.path.name}", names, labels, info.data_sha256, pixels.__getitem__
    )
    dtype = np.dtype(read_preprocess(source).dtype).str
    return BundledImages(images, outputs, GoldenPair(pixels[0], _array(bundle, GOLDEN, (dtype,), 3)), truth is not None)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _array(bundle: Bundle, name: str, types: Sequence[str], ndim: int | None = None) -> npt.NDArray[Any]:
    """A member as an array of one of the types with `ndim` axes (None for any) that shares its bytes. Raises ArtifactError."""
    data, where = bundle.read(name), f"{bundle.path}: {name}"
    header = _HEADER.match(data)
    if header is None:
        raise ArtifactError("member is not a NumPy array", where=where, found=repr(data[:40]), next_command=REMAKE)
    kind, shape = header[1].decode(errors="replace"), tuple(map(int, header[2].split(b", ")))
    fits = kind in types and ndim in (None, len(shape))
    if not fits or math.prod(shape) * np.dtype(kind).itemsize != len(data) - header.end():
        found = f"{kind} {shape} in {len(data)} bytes"
        allowed = f"{' or '.join(types)}" + ("" if ndim is None else f" with {ndim} axes")
        raise ArtifactError("member has an unexpected dtype or shape", where=where, found=found, allowed=allowed)
    return np.frombuffer(data, kind, offset=header.end()).reshape(shape)
