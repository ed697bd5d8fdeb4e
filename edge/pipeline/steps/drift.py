"""drift: the engine, or its graph on the CPU, against model.onnx on images -> drift.json, logits.npz, flips.npz."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from calib.parallel import ordered_map
from edge.drift.drift_report import DriftReport, Source, Subject, judge_sides, write_drift
from edge.drift.looks import Look, join_sides, look_sizes, look_subset
from edge.drift.stored_reference import StoredAnswers, check_stored
from edge.images.golden_pair import check_build_golden, require_golden
from edge.images.labelled_images import ImageSet
from edge.images.preprocess import read_preprocess
from edge.pipeline.request_checks import check_answers_fit, output_bytes
from edge.pipeline.workspace import Step
from edge.progress import Advance
from edge.runtime.engine_runner import open_engine
from edge.runtime.openvino_runner import OpenVinoRunner
from edge.runtime.ort_runner import BATCH, OrtRunner, emulated_runner
from edge.runtime.runner import Images, Runner, pad_batch
from edge.tasks.budget import Budget
from edge.tasks.registry import task_of
from edge.tasks.task import Int64, Outputs, Sides
from edge.tasks.tensors.measured_output import KEPT_BYTES
from engines.build_folder.file_names import ANSWERS, DRIFT, GOLDEN, MANIFEST, MODEL, PICTURES, TYPED
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest
from engines.build_spec import BatchRange
from engines.hardware import versions
from engines.targets import CPU_BACKENDS

Pair = tuple[Outputs, Outputs]
THIS_GPU = "this machine's GPU"
CPU_RUNTIMES = {"ort": "ONNX Runtime, CPU", "openvino": "OpenVINO, CPU"}
"""Backend of a CPU -> what runs its engines."""
LARGEST_BATCH_BYTES = 1 << 27
"""Outputs of one run, of either side."""


@dataclass(frozen=True)
class Question:
    """What a build is judged on.

    Attributes:
        labelled: whether the images have labels; without, the task judges by the share of changed answers.
        stored: the reference's answers, None to compute them here.
        sequential: whether growing groups of the images are judged until the verdict is decided, see `edge.drift.looks`; where
            that is not possible, all at once.
    """

    images: ImageSet
    labelled: bool
    budget: Budget
    stored: StoredAnswers | None = None
    sequential: bool = False


def drift_step(build: BuildFolder, question: Question, *, here: bool) -> Step:
    """The step that judges a build: its engine, or where `here` is false the graph that it was built from.

    Raises InputError for stored answers of another graph, other images or other preprocessing, and for too many large outputs.
    """
    manifest, images, stored = build.manifest, question.images, question.stored
    preprocess = read_preprocess(manifest)
    if stored is not None:
        required = {
            "FP32 graph": (stored.reference.sha256, manifest.onnx.sha256),
            "set of images": (stored.data_sha256, images.sha256),
            "preprocessing": (stored.preprocess_sha256, preprocess.sha256),
        }
        check_stored(stored, required, len(images))
    require_golden(build)
    if task_of(manifest).keeps_outputs:
        check_answers_fit(manifest.outputs, len(images), "--images")
    groups = _group_sizes(manifest, question)
    judged = manifest.engine.file if here else (manifest.typed_onnx or manifest.qdq_onnx or manifest.onnx).file
    reads = {
        "manifest": build.sha256(MANIFEST),
        "golden": build.sha256(GOLDEN),
        "judged": judged,
        "reference": stored.sha256 if stored else manifest.onnx.sha256,
        "images": images.sha256,
        "labelled": question.labelled,
        "budget": asdict(question.budget),
        "versions": versions("onnxruntime", *(("openvino",) if manifest.engine.backend == "openvino" else ())),
        **({"notes": list(images.notes)} if images.notes else {}),
        **({"looks": list(groups)} if len(groups) > 1 else {}),
    }
    return Step("drift", reads, (DRIFT, ANSWERS, PICTURES), partial(judge_build, build, question, judged))


def judge_build(
    build: BuildFolder, question: Question, judged: str, out: Path, advance: Advance, opened: Runner | None = None
) -> None:
    """Run the file `judged` of a build, and the FP32 graph unless its answers are stored, on every image; judge.

    The verdict is written into the folder `out`. `opened` runs the file, where it was opened already.
    """
    manifest, images = build.manifest, question.images
    preprocess = read_preprocess(manifest)
    check_build_golden(build, preprocess)
    if manifest.bundle is None:
        from edge.report.inputs import read_built

        read_built(build)  # what the report would refuse is refused before the verdict is replaced
    is_engine = judged == manifest.engine.file and manifest.engine.backend not in CPU_BACKENDS
    sizes = BatchRange(*manifest.batch) if is_engine else BatchRange(1, 1, BATCH)
    fitting = max(1, LARGEST_BATCH_BYTES // max(1, output_bytes(manifest.outputs)))
    size = max(sizes.min, min(BATCH, sizes.max, fitting))
    runner = _judged_runner(build, judged, is_engine=is_engine) if opened is None else opened
    ran_on = judged_on(
        manifest.engine.backend,
        here=judged == manifest.engine.file,
        emulated=judged == TYPED,
        gpu=manifest.engine.device or THIS_GPU,
    )
    subject = Subject(
        reference=question.stored.reference if question.stored else Source(MODEL, manifest.onnx.sha256, "ONNX Runtime, CPU"),
        engine=Source(judged, build.sha256(judged), ran_on),
        data=images.source,
        data_sha256=images.sha256,
        preprocess_sha256=preprocess.sha256,
    )
    with runner:
        reference = _reference(build, question.stored, throughput=runner.at_once > 1)

        def both(batch: tuple[Int64, Images]) -> Pair:
            return reference(*batch), answer(runner, batch[1], sizes.min)

        def pairs(chosen: Int64, before: int) -> Iterator[Pair]:
            parts = (chosen[start : start + size] for start in range(0, len(chosen), size))
            batches = zip(parts, images.at(chosen, images.sha256).batches(preprocess, size), strict=True)
            for number, outputs in enumerate(ordered_map(both, batches, runner.at_once), start=1):
                yield outputs
                advance(min(1.0, (before + number * size) / len(images)))

        report, sides, judged_images = _judge_groups(manifest, question, subject, pairs)
    write_drift(out, task_of(manifest), report, sides, judged_images.pixels)


def _judge_groups(
    manifest: EngineManifest,
    question: Question,
    subject: Subject,
    pairs: Callable[[Int64, int], Iterator[Pair]],
) -> tuple[DriftReport, Sides, ImageSet]:
    """The verdict, what it rests on, and the judged images: all at once, or as many groups as decide it.

    `pairs`: positions of images, number of those run before -> both sides' outputs, batch by batch.
    """
    task, images, groups = task_of(manifest), question.images, _group_sizes(manifest, question)
    run: Int64 = np.arange(0)
    parts: list[Sides] = []
    for number in range(1, len(groups) + 1):
        look = Look(number, len(groups), len(images)) if len(groups) > 1 else None
        chosen, sha256 = look_subset(images.sha256, len(images), number) if look else (np.arange(len(images)), images.sha256)
        new = np.setdiff1d(chosen, run, assume_unique=True)
        parts.append(task.gather(pairs(new, len(run)), len(new), images.labels[new] if question.labelled else None))
        run = np.concatenate([run, new])
        judged = images.at(chosen, sha256)
        sides = parts[0] if number == 1 else join_sides(parts, np.argsort(run), judged.labels if question.labelled else None)
        seen = replace(subject, data_sha256=sha256)
        stamp, notes = manifest.random_weights, images.notes
        report = judge_sides(task, seen, sides, question.budget, random_weights=stamp, notes=notes, look=look)
        if report.verdict != "inconclusive":
            break
    return report, sides, judged


def _group_sizes(manifest: EngineManifest, question: Question) -> tuple[int, ...]:
    """Numbers of images after which a verdict is tried; one where groups have no interval or cannot be joined.

    The figure that judges random weights has no interval, and of outputs beyond KEPT_BYTES figures alone are kept.
    """
    images = len(question.images)
    kept = task_of(manifest).keeps_outputs or 2 * images * output_bytes(manifest.outputs) <= KEPT_BYTES
    return look_sizes(images) if question.sequential and kept and not manifest.random_weights else (images,)


def answer(runner: Runner, images: Images, smallest: int) -> Outputs:
    """Outputs (n, ...) of images (n, ...); copies of the last one fill the batch up to the engine's smallest."""
    return tuple(output[: len(images)] for output in runner(pad_batch(images, smallest)))


def _judged_runner(build: BuildFolder, judged: str, *, is_engine: bool) -> Runner:
    """The runner of the judged file: the engine, or a graph on the CPU."""
    if is_engine:
        return open_engine(build)
    if judged == build.manifest.engine.file and build.manifest.engine.backend == "openvino":
        return OpenVinoRunner(build.path / judged, data=build.data(judged))
    if judged != TYPED:
        return _ort_runner(build, judged, throughput=True)
    from calib.graph import parse_graph

    path = build.path / judged
    return emulated_runner(parse_graph(build.data(judged), path), path, throughput=True)


def _reference(build: BuildFolder, stored: StoredAnswers | None, *, throughput: bool) -> Callable[[Int64, Images], Outputs]:
    """Positions of images, the images -> outputs of the FP32 graph, run here or stored."""
    if stored is not None:
        outputs = stored.outputs
        return lambda chosen, _batch: tuple(output[chosen] for output in outputs)
    runner = _ort_runner(build, MODEL, throughput=throughput)
    return lambda _chosen, batch: runner(batch)


def _ort_runner(build: BuildFolder, file: str, *, throughput: bool) -> Runner:
    return OrtRunner(build.path / file, data=build.data(file), throughput=throughput)


def judged_on(backend: str, *, here: bool, emulated: bool, gpu: str = THIS_GPU) -> str:
    """What runs the judged side, in words that say so where it is not the engine itself.

    `backend`: of the engine. `here`: this machine can run the engine. `emulated`: the graph that is judged in its
    place has FP16 roundings, which are emulated.
    """
    if here:
        return f"{CPU_RUNTIMES.get(backend, gpu)}: the engine itself"
    how = ", its FP16 roundings emulated" if emulated else ""
    return f"ONNX Runtime, CPU{how}: the graph that the engine was built from, not the engine itself"
