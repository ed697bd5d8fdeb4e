"""Plant realistic faults in builds; `planted_regressions.py` runs the gate and the attribution on them.

Each function takes the bench and a name and creates a faulty build: it copies the honest folder without the file of the step in
which such a fault occurs, and builds again with that step's function wrapped to plant the fault. Later steps run unchanged, so
that every digest is consistent, as in a real build.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from replaced_steps import Work, in_place_of, replaced

from calib.calibration_table import TensorScale, load_table, save_table
from calib.errors import UfovitError
from calib.files import sha256_bytes, write_bytes
from calib.qdq_writer import serialize
from edge.gate.update import update_baseline
from edge.images.labelled_images import ImageSet
from edge.pipeline import build as pipeline
from edge.pipeline import rejudge
from edge.pipeline.build_inputs import judging_images, resolve_inputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.judge_options import JudgeOptions
from edge.pipeline.step_counter import StepCounter
from edge.pipeline.steps import calibrate, drift
from edge.pipeline.workspace import Step
from edge.progress import Silent
from engines.build_folder.file_names import CALIBRATION, DRIFT, FOLDED, MANIFEST, QUANTIZED, REFINED, TYPED
from engines.build_folder.folder import BuildFolder

MAX_DROP = 2.0  # points: with fewer than 10,000 images the default of 0.5 may be inconclusive
OTHER_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, from a copied recipe
COSTLIEST = "norm/LayerNormalization_output"  # input of the layer with most noise in the shipped network


@dataclass(frozen=True)
class Bench:
    """The honest build, its request and its baseline."""

    request: BuildRequest
    out: Path

    @property
    def honest(self) -> Path:
        """Its folder."""
        return self.out / "honest"

    @property
    def baseline(self) -> Path:
        """File of its baseline."""
        return self.out / "baseline.json"


@dataclass(frozen=True)
class Planted:
    """A faulty build: its folder, the outcome of the build, its baseline; `swapped`: the evaluated side gets BGR."""

    folder: Path | None
    outcome: str
    baseline: Path
    images: ImageSet | None = None
    swapped: bool = False


def quietly() -> contextlib.AbstractContextManager[None]:
    """Skip the report."""
    return replaced(pipeline, "report_step", lambda _workspace: Step("report", {}, (), lambda _out, _advance: None))


def copied(bench: Bench, name: str, first: str, source: Path | None = None) -> Path:
    """Copy a build, by default the honest one, without the file `first`, so that a build resumes with the step that writes it.
    Files are hard links: no step writes into an existing file."""
    folder = bench.out / slug(name)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source or bench.honest, folder, copy_function=os.link)
    (folder / first).unlink()
    return folder


def slug(name: str) -> str:
    """File name of a fault."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def rebuilt(bench: Bench, name: str, first: str, **works: Work) -> Planted:
    """Rebuild the honest build from the file `first` on; `works` replace steps: work(honest step, *its arguments)."""
    folder = copied(bench, name, first)
    with contextlib.ExitStack() as stack:
        for step, work in works.items():
            stack.enter_context(in_place_of(step, work))
        return Planted(folder, build(replace(bench.request, out=folder)), bench.baseline)


def build(request: BuildRequest) -> str:
    """Run a build; returns its outcome in a few words."""
    with quietly():
        try:
            return f"ran through: {pipeline.build_model(request, Silent()).verdict}"
        except UfovitError as error:
            return f"refused: {str(error).splitlines()[0]}"


def rejudged(bench: Bench, folder: Path, data: Path | None = None) -> None:
    """Evaluate a build again, with the budget of the honest one."""
    options = JudgeOptions(data=data, max_drop_points=bench.request.max_drop_points)
    with quietly():
        rejudge.rejudge_build(folder, options, Silent())


def larger_scale(bench: Bench, name: str, factor: float, tensor: str = COSTLIEST) -> Planted:
    """Multiply one activation's scale in the calibration table by a factor."""

    def work(_honest: Work, _counter: Any, _model: Path, refined: Path, table: Path, *, advance: Any) -> None:  # noqa: ARG001
        shutil.copy(bench.honest / REFINED, refined)
        calibrated = load_table(bench.honest / CALIBRATION)
        old = calibrated.tensors[tensor]
        new = TensorScale.from_amax(factor * old.amax, tensor, old.method)
        save_table(table, replace(calibrated, tensors={**calibrated.tensors, tensor: new}))

    return rebuilt(bench, name, CALIBRATION, calibrate=work)


def edit_graph(path: Path, names: Callable[[str], bool], change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Change the constants of an ONNX file that `names` selects; shapes and types stay. Raises KeyError if there are none."""
    model = onnx.load(path)
    selected = [tensor for tensor in model.graph.initializer if names(tensor.name)]
    if not selected:
        raise KeyError(f"{path}: no constant is selected")
    for tensor in selected:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(values.copy()), values.dtype), tensor.name))
    write_bytes(path, serialize(model))


def zeroed_channel(bench: Bench, name: str, weight: str = "stem.9.weight", channel: int = 17) -> Planted:
    """Set the weights of one output channel to zero when the graph is quantized."""

    def zero(values: NDArray[Any]) -> NDArray[Any]:
        values[channel] = 0
        return values

    def work(honest: Work, request: Any, keep: Any, model: Path, table: Path, quantized: Path, *, advance: Any) -> None:
        honest(request, keep, model, table, quantized, advance=advance)
        edit_graph(quantized, lambda constant: constant == f"{weight}_quantized", zero)

    return rebuilt(bench, name, QUANTIZED, quantize=work)


def other_mean_in_manifest(bench: Bench, name: str) -> Planted:
    """Write another mean to the engine's manifest than to the graph."""

    def work(honest: Work, counter: StepCounter, *arguments: Any, advance: Any) -> None:
        network = counter.inputs.network
        other = replace(network, preprocess=replace(network.preprocess, mean=OTHER_MEAN))
        honest(replace(counter, inputs=replace(counter.inputs, network=other)), *arguments, advance=advance)

    return rebuilt(bench, name, MANIFEST, engine=work)


def other_mean_in_checkpoint(bench: Bench, name: str) -> Planted:
    """Build from a checkpoint with another mean in its metadata."""
    from edge.model.checkpoint import load_checkpoint, save_checkpoint

    inputs, request = resolve_inputs(bench.request), bench.request
    network, info = load_checkpoint(Path(inputs.network.file), model=request.model, image_size=request.image_size)
    checkpoint = bench.out / f"{slug(name)}.safetensors"
    save_checkpoint(network, replace(info, preprocess=replace(info.preprocess, mean=OTHER_MEAN)), checkpoint)
    folder = bench.out / slug(name)
    return Planted(folder, build(replace(request, out=folder, checkpoint=checkpoint)), bench.baseline)


def bgr(bench: Bench, name: str) -> Planted:
    """Swap the channels of the evaluated runner's input, on images of which each has its own tint."""
    from PIL import Image

    images, folder = resolve_inputs(bench.request).eval_images, bench.out / "tinted"
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(len(images)):
        grey, tint = images.pixels(i)[..., :1], np.random.default_rng(i).uniform(0.5, 1, 3)
        Image.fromarray((grey * tint).round().astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{images.labels[i]}\n")
    tinted = folder / "list.csv"
    tinted.write_text("".join(lines))
    honest, baseline = copied(bench, "honest, tinted", DRIFT), bench.out / "baseline-tinted.json"
    rejudged(bench, honest, tinted)
    update_baseline(BuildFolder(honest), baseline, force=True)
    faulty = copied(bench, name, DRIFT, honest)

    def swapped(answer: Any, runner: Any, batch: NDArray[Any], smallest: int) -> NDArray[Any]:
        swapped_answers: NDArray[Any] = answer(runner, np.ascontiguousarray(batch[:, ::-1]), smallest)
        return swapped_answers

    with replaced(drift, "answer", partial(swapped, drift.answer)):
        rejudged(bench, faulty, tinted)
    shown = judging_images(tinted, resolve_inputs(bench.request).network.task)
    return Planted(faulty, "ran through", baseline, shown, swapped=True)


def shifted_labels(bench: Bench, name: str, forged: bool = False) -> Planted:
    """Replace every label by the next class; `forged`: with the digest of the correct labels."""
    faulty, images = copied(bench, name, DRIFT), resolve_inputs(bench.request).eval_images
    labels = (images.labels + 1) % (images.labels.max() + 1)
    sha256 = images.sha256 if forged else sha256_bytes(labels.tobytes())
    with replaced(rejudge, "judging_images", lambda *_data: replace(images, labels=labels, sha256=sha256)):
        rejudged(bench, faulty)
    return Planted(faulty, "ran through", bench.baseline)


def eight_images(bench: Bench, name: str) -> Planted:
    """Calibrate on eight images: refused before the build starts."""
    return Planted(None, build(replace(bench.request, out=bench.out / name, calib_images=8)), bench.baseline)


def few_scenes(bench: Bench, name: str, scenes: int) -> Planted:
    """Calibrate on few distinct images, repeated to 32, like frames of a static camera."""
    whole = resolve_inputs(bench.request).calib_images
    burst = np.stack([whole.pixels(i % scenes) for i in range(32)])
    labels, digest = whole.labels[np.arange(32) % scenes], sha256_bytes(burst.tobytes())
    images = ImageSet(f"{scenes} scenes", tuple(map(str, range(32))), labels, digest, lambda i: burst[i])

    work = calibrated_on(images)
    return rebuilt(bench, name, CALIBRATION, calibrate=work, engine=work)


def calibrated_on(images: ImageSet) -> Work:
    """Work of `calibrate` and `engine` with other calibration images."""

    def work(honest: Work, counter: StepCounter, *arguments: Any, advance: Any) -> None:
        honest(replace(counter, inputs=replace(counter.inputs, calib_images=images)), *arguments, advance=advance)

    return work


def _longer_queries(values: NDArray[Any]) -> NDArray[Any]:
    return values * 2.0**12


def _of_queries(constant: str) -> bool:
    """Whether a constant scales W_Q or is its bias, in a graph with Q/DQ."""
    name = constant.removesuffix("/fp16")
    return ".attn.q" in name and name.endswith(("weight_scale", "bias"))


def overflow_before_typing(bench: Bench, name: str) -> Planted:
    """Multiply W_Q and its bias by 2^12, as if never folded: the same network in FP32. Planted before the check of FP16."""

    def work(honest: Work, request: Any, keep: Any, model: Path, table: Path, quantized: Path, *, advance: Any) -> None:
        honest(request, keep, model, table, quantized, advance=advance)
        edit_graph(quantized, _of_queries, _longer_queries)

    return rebuilt(bench, name, QUANTIZED, quantize=work)


def overflow_after_typing(bench: Bench, name: str) -> Planted:
    """The same after the check of the typed graph."""

    def work(honest: Work, request: Any, inputs: Any, graph: str, out: Path, *, advance: Any) -> None:
        honest(request, inputs, graph, out, advance=advance)
        edit_graph(out / TYPED, _of_queries, _longer_queries)

    return rebuilt(bench, name, TYPED, type_fp16=work)


def last_weeks_weights(bench: Bench, name: str, moved: float = 0.03) -> Planted:
    """Quantize another checkpoint: every weight is changed by 3 % of its tensor's standard deviation."""
    rng, folder = np.random.default_rng(0), bench.out / "last-week"
    folder.mkdir(exist_ok=True)
    shutil.copy(bench.honest / FOLDED, folder / FOLDED)
    weights = {t.name for t in onnx.load(folder / FOLDED).graph.initializer if len(t.dims) > 1}
    edit_graph(folder / FOLDED, weights.__contains__, lambda v: v + moved * v.std() * rng.normal(size=v.shape))
    paths = (folder / FOLDED, folder / REFINED, folder / CALIBRATION)
    counter = StepCounter(bench.request, resolve_inputs(bench.request), print)
    calibrate.calibrate_model(counter, *paths, advance=lambda _share: None)

    def work(honest: Work, request: Any, keep: Any, _model: Path, _table: Path, quantized: Path, *, advance: Any) -> None:
        honest(request, keep, *paths[1:], quantized, advance=advance)

    return rebuilt(bench, name, QUANTIZED, quantize=work)
