"""Pack a build folder and labelled images into a bundle; read the test images and FP32 answers of one."""

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import ArtifactError
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.images.golden_pair import GoldenPair, shrunk
from edge.images.labelled_images import ImageSet
from edge.images.preprocess import Float32, read_preprocess
from edge.progress import Advance
from engines.build_folder.bundle_format import ANSWERS, GOLDEN, LABELS, PIXELS, REMAKE, SHAPES, Bundle, BundleInfo, write_bundle
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import MANIFEST_ARTIFACT, EngineManifest, FileRecord, source_graph
from engines.build_folder.verify import verify_folder
from engines.targets import TARGETS

_ARRAYS = (PIXELS, SHAPES, LABELS, ANSWERS, GOLDEN)
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(...)', 'fortran_order': False, 'shape': \((\d{1,12}(?:, \d{1,12})*),?\), \} *\n",
    re.DOTALL,
)
"""Header of an array as `numpy.save` writes it (numpy.lib.format, version 1.0). numpy's own reader evaluates it as Python."""


@dataclass(frozen=True)
class BundledImages:
    """The images of a bundle, the FP32 reference's answers (n, classes), and the first image as the network sees it."""

    images: ImageSet
    answers: Float32
    golden: GoldenPair


def make_bundle(build: BuildFolder, images: ImageSet, path: Path, advance: Advance) -> BundleInfo:
    """Pack a finished build and labelled images into one file.

    The reference's answers to exactly these images are computed here, by ONNX Runtime on the FP32 graph of the build. Images
    more than twice as large as the network's input are stored at that size: the answers are those to the stored images.

    Raises ArtifactError for a folder whose files do not match their records, whose graph no GPU target builds from, or that was
    itself built from a bundle.
    """
    from edge.runtime.ort_runner import BATCH, OrtRunner, run_all
    from engines.layer_requests import parse_graph

    verify_folder(build)
    manifest, drift = build.manifest, build.read(DRIFT_ARTIFACT)
    _check_packable(build.path, manifest)
    preprocess = read_preprocess(manifest)
    runner = OrtRunner(build.path / manifest.onnx.file, data=build.data(manifest.onnx.file), throughput=True)
    pixels = tuple(shrunk(images.pixels(i), preprocess) for i in range(len(images)))
    starts = range(0, len(pixels), BATCH)
    batches = (np.stack([preprocess(image) for image in pixels[start : start + BATCH]]) for start in starts)
    answers = run_all(runner, batches, lambda done: advance(done / len(pixels)))
    members = {file: build.data(file) for file in (MANIFEST, *packed_digests(manifest))}
    members |= {
        PIXELS: _npy(np.concatenate([image.ravel() for image in pixels])),
        SHAPES: _npy(np.array([image.shape for image in pixels], np.int64)),
        LABELS: _npy(images.labels),
        ANSWERS: _npy(answers),
        GOLDEN: _npy(preprocess(pixels[0])),
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
    )
    write_bundle(path, info, members)
    return info


def packed_digests(manifest: EngineManifest) -> dict[str, str]:
    """File -> SHA-256 of what a bundle takes over from a build folder, besides the manifest."""
    records = (source_graph(manifest), manifest.xnorm, manifest.calibration)
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
    for file in sorted({*digests, *(info.members.keys() - {MANIFEST, *_ARRAYS})}):
        pairs[file] = (info.members[file].sha256 if file in info.members else None, digests.get(file))
    for name, (found, recorded) in pairs.items():
        if found != recorded:
            raise ArtifactError("the bundle mixes files of two builds", where=f"{where}: {name}", found=found, allowed=recorded)
    if not 0 <= info.budget_points < math.inf:  # NaN, too
        raise ArtifactError("the accuracy budget must be a non-negative number", where=bundle.path, found=info.budget_points)
    return manifest


def read_bundled_images(bundle: Bundle, classes: int) -> BundledImages:
    """The images and reference answers of a bundle. Raises ArtifactError when they do not match."""
    flat, shapes = _array(bundle, PIXELS, np.uint8, 1), _array(bundle, SHAPES, np.int64, 2)
    labels, answers = _array(bundle, LABELS, np.int64, 1), _array(bundle, ANSWERS, np.float32, 2)
    count, sizes = len(labels), [math.prod(shape) for shape in shapes.tolist()]
    fits = count and shapes.shape == (count, 3) and answers.shape == (count, classes) and (shapes > 0).all()
    if not fits or sum(sizes) != len(flat):
        found = f"{len(flat)} pixels, {shapes.shape}, {labels.shape}, {answers.shape}"
        raise ArtifactError("the bundle's images and answers do not match", where=bundle.path, found=found, next_command=REMAKE)
    if labels.min() < 0 or labels.max() >= classes:
        found, allowed = f"classes {labels.min()} to {labels.max()}", f"0 to {classes - 1}"
        raise ArtifactError("a label is out of range", where=f"{bundle.path}: {LABELS}", found=found, allowed=allowed)
    if not np.isfinite(answers).all():
        raise ArtifactError(
            "the FP32 reference answers contain NaN or infinity", where=f"{bundle.path}: {ANSWERS}", next_command=REMAKE
        )
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    pixels = tuple(part.reshape(shape) for part, shape in zip(parts, shapes.tolist(), strict=True))
    info, names = bundle.info, tuple(map(str, range(count)))
    source = f"{count} images of {info.data}, in {bundle.path.name}"
    images = ImageSet(source, names, labels, info.data_sha256, pixels.__getitem__)
    return BundledImages(images, answers, GoldenPair(pixels[0], _array(bundle, GOLDEN, np.float32, 3)))


def _check_packable(folder: Path, manifest: EngineManifest) -> None:
    if manifest.bundle is not None:
        raise ArtifactError(
            "a build from a bundle cannot be bundled again",
            where=folder,
            found=manifest.bundle.file,
            next_command="use that bundle: it builds for every target",
        )
    if manifest.precision != "fp32" and manifest.typed_onnx is None:
        raise ArtifactError(
            "the build's graph is not typed for a GPU",
            where=folder,
            found=f"target {manifest.target}",
            allowed=", ".join(t.name for t in TARGETS.values() if t.float_type == "fp16" and not t.refusal),
            next_command=f"ufovit build {manifest.model} {manifest.precision} --target rtx",
        )


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _array(bundle: Bundle, name: str, dtype: type[np.generic], ndim: int) -> npt.NDArray[Any]:
    """A member as an array with `ndim` axes that shares its bytes. Raises ArtifactError for any other."""
    data, where = bundle.read(name), f"{bundle.path}: {name}"
    header = _HEADER.match(data)
    if header is None:
        raise ArtifactError("member is not a NumPy array", where=where, found=repr(data[:40]), next_command=REMAKE)
    expected, kind, shape = np.dtype(dtype), header[1].decode(errors="replace"), tuple(map(int, header[2].split(b", ")))
    if kind != expected.str or len(shape) != ndim or math.prod(shape) * expected.itemsize != len(data) - header.end():
        found, allowed = f"{kind} {shape} in {len(data)} bytes", f"{expected.str} with {ndim} axes"
        raise ArtifactError("member has an unexpected dtype or shape", where=where, found=found, allowed=allowed)
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape)
