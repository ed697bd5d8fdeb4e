"""Open the runner of a build folder: verify it, check preprocessing, and name in words what runs.

trt       the engine itself, on this machine's GPU
ort       a CPU's engine itself; else the graph that the engine was built from, FP16 roundings emulated
openvino  the Q/DQ graph, or the FP32 graph: never the engine itself
auto      the engine itself where this machine can run it; else its graph: with OpenVINO, if it is INT8 and OpenVINO is
          installed, else with ONNX Runtime
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import numpy as np

from calib.errors import ArtifactError, MissingError, UsageError
from edge.images.golden_pair import GoldenPair, check_build_golden
from edge.images.preprocess import Preprocess, read_preprocess
from edge.option_bounds import THREADS, check_bounds
from edge.runtime.engine_runner import engine_device
from edge.runtime.ort_runner import BATCH, OrtRunner, emulated_runner
from edge.runtime.runner import Images, Runner
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest, source_graph
from engines.build_folder.verify import verify_folder
from engines.build_spec import BatchRange
from engines.hardware import gpus, jetson_module
from engines.targets import CPU_BACKENDS

AUTO = "auto"
RUNNERS = (AUTO, "ort", "openvino", "trt")
_ANY_BATCH = BatchRange(1, 1, BATCH)
_NOT_ITSELF = "not the engine itself"
_OTHER_RUNTIME = "drift.json was measured with another runtime: OpenVINO and ONNX Runtime round differently"


@dataclass(frozen=True)
class OpenedBuild:
    """A verified build with a runner for this machine.

    Attributes:
        preprocess: the build's, checked on this machine.
        golden: an image and its tensor.
        runner: takes preprocessed images; of "trt", only for the thread that opened it (`clone` makes others).
        name: "ort", "openvino" or "trt".
        ran_on: phrase that names what runs where; names the graph if it is not the engine itself.
        batch: the batch sizes that it takes.
        notes: remarks for the user, one sentence each.
        itself: whether the engine of the build runs, not a graph that it was built from.
    """

    build: BuildFolder
    manifest: EngineManifest
    preprocess: Preprocess
    golden: GoldenPair
    runner: Runner
    name: str
    ran_on: str
    batch: BatchRange = _ANY_BATCH
    notes: tuple[str, ...] = ()
    itself: bool = False

    def golden_images(self, count: int) -> Images:
        """The golden image `count` times, as the network takes it."""
        return np.repeat(self.golden.tensor[None], count, axis=0)


def open_runner(build: BuildFolder, runner: str = AUTO, *, threads: int = 0) -> OpenedBuild:
    """Open the runner of a build.

    Args:
        build: a finished build. On a device, `golden.npz`, `manifest.json`, `steps.json` and the engine are enough.
        runner: one of RUNNERS.
        threads: number of threads of a runner on the CPU; 0 for every core.

    Raises:
        ArtifactError: a file that does not match its record, or is missing.
        UsageError: a runner that such a build does not have.
        VerdictError: this machine preprocesses images differently.
        MissingError: the requested runner needs something that this machine lacks; names the command that installs it.
    """
    if runner not in RUNNERS:
        raise UsageError(f"unknown runner {runner!r}", where="--runner", allowed=", ".join(RUNNERS))
    check_bounds("--threads", threads, THREADS)
    preprocess = read_preprocess(build.manifest)
    golden = check_build_golden(build, preprocess)
    verify_folder(build, complete=False)
    opener = _Opener(build, partial(OpenedBuild, build, build.manifest, preprocess, golden), threads)
    return {AUTO: opener.auto, "ort": opener.ort, "openvino": opener.openvino, "trt": opener.trt}[runner]()


@dataclass(frozen=True)
class _Opener:
    """Opens the runners of a verified build; `opened` makes an `OpenedBuild` of one."""

    build: BuildFolder
    opened: Callable[..., OpenedBuild]
    threads: int

    @property
    def for_cpu(self) -> bool:
        return self.build.manifest.engine.backend in CPU_BACKENDS

    def auto(self) -> OpenedBuild:
        if self.for_cpu:
            return self.openvino() if self.build.manifest.engine.backend == "openvino" else self.ort()
        try:
            return self._engine()
        except MissingError as error:
            reasons = [f"the engine itself cannot run here: {_reason(error)}"]
        candidates: list[Callable[[], OpenedBuild]] = [self.ort]
        quantized = self.build.manifest.qdq_onnx
        if quantized is not None and self.build.has(quantized.file) and find_spec("openvino") is not None:
            candidates.insert(0, self.openvino)
        for candidate in candidates:
            try:
                opened = candidate()
            except MissingError as error:
                reasons.append(str(error).splitlines()[0])
            else:
                return replace(opened, notes=(*reasons, *opened.notes))
        raise MissingError(
            "neither the engine nor its graph can run here",
            where=self.build.path,
            found="; ".join(reasons),
            next_command="pip install 'ufovit-edge[build]' for its graph on the CPU; ufovit doctor for the engine",
        )

    def trt(self) -> OpenedBuild:
        engine, target = self.build.manifest.engine, self.build.manifest.target
        if self.for_cpu:
            what, allowed = "runner trt: the build's engine is for a CPU", "ort, openvino"
            raise UsageError(what, where=self.build.path, found=f"target {target}", allowed=allowed)
        try:
            return self._engine()
        except MissingError as error:
            raise MissingError(
                "runner trt: the engine cannot run here",
                where=self.build.path / engine.file,
                found=_reason(error),
                allowed=f"{engine.backend} {engine.backend_version} on compute capability "
                + ", ".join(engine.compute_capabilities),
                next_command="--runner ort or --runner openvino for its graph on the CPU; ufovit doctor for what is missing",
            ) from error

    def _engine(self) -> OpenedBuild:
        device = engine_device(self.build.manifest)
        runner = device.load(self.build.engine())
        ran_on = f"{device.memory.name}: the engine itself"
        return self.opened(runner, "trt", ran_on, BatchRange(*runner.batches), tuple(runner.notes), itself=True)

    def ort(self) -> OpenedBuild:
        manifest = self.build.manifest
        file = manifest.engine.file if self.for_cpu else source_graph(manifest).file
        path, data = self.build.path / file, self.build.data(file)
        if manifest.engine.backend == "openvino":
            what = f"the engine's graph, {_NOT_ITSELF}, which OpenVINO runs"
            return self.opened(
                OrtRunner(path, self.threads, data=data), "ort", f"ONNX Runtime, CPU: {what}", notes=(_OTHER_RUNTIME,)
            )
        if self.for_cpu:
            engine = OrtRunner(path, self.threads, data=data)
            return self.opened(engine, "ort", "ONNX Runtime, CPU: the engine itself", itself=True)
        what = f"the graph that the engine was built from, {_NOT_ITSELF}"
        if manifest.typed_onnx is None:
            return self.opened(OrtRunner(path, self.threads, data=data), "ort", f"ONNX Runtime, CPU: {what}")
        try:
            from calib.graph import parse_graph
        except ImportError as error:
            raise MissingError("onnx is not installed", next_command="pip install 'ufovit-edge[build]'") from error
        emulated = emulated_runner(parse_graph(data, path), path, self.threads)
        note = "FP16 rounding is emulated, which is slow: these times are not the engine's"
        return self.opened(emulated, "ort", f"ONNX Runtime, CPU, its FP16 roundings emulated: {what}", notes=(note,))

    def openvino(self) -> OpenedBuild:
        from edge.runtime.openvino_runner import OpenVinoRunner

        manifest = self.build.manifest
        if manifest.engine.backend == "openvino":
            path, data = self.build.path / manifest.engine.file, self.build.engine()
            engine = OpenVinoRunner(path, self.threads, data=data)
            return self.opened(engine, "openvino", "OpenVINO, CPU: the engine itself", itself=True)
        if manifest.precision == "fp16":
            raise UsageError(
                "runner openvino: on a CPU it would compute the FP16 graph in FP32",
                where=self.build.path,
                found="precision fp16",
                allowed="int8, fp32",
                next_command="--runner ort, which emulates the roundings of FP16",
            )
        file = (manifest.qdq_onnx or manifest.onnx).file
        path = self.build.path / file
        if not self.build.has(file):
            raise ArtifactError(
                "runner openvino: the folder lacks the graph",
                where=path,
                found=f"built from {manifest.bundle.file}" if manifest.bundle else "a folder without its graphs",
                allowed="the build folder that the engine comes from",
                next_command="--runner ort",
            )
        what = "the Q/DQ graph" if manifest.precision == "int8" else "the FP32 graph"
        typed = ", before it was typed for FP16" if manifest.typed_onnx else ""
        runner = OpenVinoRunner(path, self.threads, data=self.build.data(file))
        return self.opened(
            runner, "openvino", f"OpenVINO, CPU: {what} of the build{typed}, {_NOT_ITSELF}", notes=(_OTHER_RUNTIME,)
        )


def _reason(error: MissingError) -> str:
    """One sentence on why an engine cannot run here."""
    if not gpus() and not jetson_module():
        return "this machine has no NVIDIA GPU, or its driver shows none"
    return " ".join(str(error).split())
