"""From a build folder to what runs its network here: verified, preprocessing checked, and said plainly what it is.

trt       the engine itself, on this machine's GPU
ort       a CPU's engine itself; else the graph that the engine was built from, FP16 roundings emulated
openvino  the Q/DQ graph, or the FP32 graph: never the engine itself
auto      the engine itself where this machine can run it; else its graph: by OpenVINO, if it is INT8 and OpenVINO is
          installed, else by ONNX Runtime
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from calib.errors import InputError, MissingError
from calib.files import sha256_bytes
from edge.images.golden_pair import GoldenPair, check_folder_golden
from edge.images.preprocess import Preprocess, read_preprocess
from edge.runtime.engine_runner import authenticate
from edge.runtime.ort_runner import BATCH, OrtRunner
from edge.runtime.runner import Images, Runner
from engines.build_folder.file_names import GOLDEN, MANIFEST
from engines.build_folder.manifest import EngineManifest, EngineRecord, FileRecord, no_manifest, read_recorded, source_graph
from engines.build_folder.safe_files import is_there, read_contained
from engines.build_folder.signature import check_listed, read_signature, signature_path
from engines.build_folder.verify import verify_folder
from engines.build_spec import BatchRange
from engines.hardware import gpus, jetson_module

AUTO = "auto"
RUNNERS = (AUTO, "ort", "openvino", "trt")
_ANY_BATCH = BatchRange(1, 1, BATCH)
_NOT_ITSELF = "not the engine itself"


@dataclass(frozen=True)
class Opened:
    """A build that is ready to answer on this machine.

    Attributes:
        runner: takes preprocessed images; of "trt", for the thread that opened it alone (`clone` makes others).
        manifest: of the build.
        preprocess: the build's, checked on this machine.
        name: "ort", "openvino" or "trt".
        ran_on: what runs what, a phrase; says when it is the graph and not the engine itself.
        batch: the batches that it takes.
        golden: an image and its tensor.
        notes: what a person should know besides, one sentence each.
        itself: whether the engine of the build is what runs, and not a graph that it was built from.
    """

    runner: Runner
    manifest: EngineManifest
    preprocess: Preprocess
    name: str
    ran_on: str
    batch: BatchRange
    golden: GoldenPair
    notes: tuple[str, ...] = ()
    itself: bool = True

    def golden_images(self, count: int) -> Images:
        """The golden image `count` times, as the network takes it."""
        return np.repeat(self.golden.tensor[None], count, axis=0)


def open_runner(folder: Path, runner: str = AUTO, *, public_key: Path | None = None, threads: int = 0) -> Opened:
    """The runner of a build folder, or in one sentence why it cannot be had.

    Args:
        folder: of a finished build. On a device, `golden.npz`, `manifest.json`, `steps.json` and the engine are enough.
        runner: one of RUNNERS.
        public_key: PEM file of the key that must have signed every file that is used.
        threads: of a runner on the CPU; 0 for every core.

    Raises:
        InputError: a file that is not the recorded one; a runner that no such build has.
        VerdictError: this machine preprocesses images in another way.
        MissingError: what the runner asked for needs and this machine lacks, with the command that mends it.
    """
    if runner not in RUNNERS:
        raise InputError(f"unknown runner {runner!r}", allowed=", ".join(RUNNERS))
    if threads < 0:
        raise InputError("no number of threads", found=threads, allowed="0 for every core, or more")
    manifest = verify_folder(folder, complete=False).manifest
    if manifest is None:  # not after a check that found nothing
        raise no_manifest(folder / MANIFEST)
    preprocess = read_preprocess(manifest)
    build = _Build(folder, manifest, public_key, threads)
    build.check_signed(MANIFEST)
    golden = check_folder_golden(folder, preprocess)
    build.check_signed(GOLDEN)
    ways = {AUTO: build.auto, "ort": build.ort, "openvino": build.openvino, "trt": build.trt}
    found = ways[runner]()
    itself = not found.ran_on.endswith(_NOT_ITSELF)
    return Opened(found.runner, manifest, preprocess, found.name, found.ran_on, found.batch, golden, found.notes, itself)


@dataclass(frozen=True)
class _Way:
    """A runner and what is to be said of it; see `Opened`."""

    runner: Runner
    name: str
    ran_on: str
    batch: BatchRange = _ANY_BATCH
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Build:
    """A verified build folder, and the ways to run it."""

    folder: Path
    manifest: EngineManifest
    public_key: Path | None
    threads: int

    @property
    def for_cpu(self) -> bool:
        return self.manifest.engine.backend == "ort"

    def check_signed(self, file: str, data: bytes | None = None) -> None:
        """Raises InputError where a signature is asked for and is not one over these bytes, else over the file's."""
        if self.public_key is not None:
            signature = read_signature(self.folder, self.public_key)
            found = read_contained(self.folder / file) if data is None else data
            check_listed(signature, signature_path(self.folder), {file: sha256_bytes(found)})

    def read(self, record: FileRecord | EngineRecord) -> tuple[Path, bytes]:
        """A file of the manifest, hashed as read: what runs is what was checked."""
        data = read_recorded(self.folder, record)
        self.check_signed(record.file, data)
        return self.folder / record.file, data

    def auto(self) -> _Way:
        if self.for_cpu:
            return self.ort()
        try:
            return self._engine()
        except MissingError as error:
            reason = _why(error)
        ways: list[Callable[[], _Way]] = [self.ort]
        if self._openvino_fits() and find_spec("openvino") is not None:
            ways.insert(0, self.openvino)
        reasons = [f"the engine itself cannot run here: {reason}"]
        for way in ways:
            try:
                found = way()
            except MissingError as error:
                reasons.append(str(error).splitlines()[0])
            else:
                return _Way(found.runner, found.name, found.ran_on, found.batch, (*reasons, *found.notes))
        raise MissingError(
            "neither the engine nor its graph can run here",
            where=self.folder,
            found="; ".join(reasons),
            next_command="pip install 'ufovit-edge[build]' for its graph on the CPU; ufovit doctor for the engine",
        )

    def trt(self) -> _Way:
        if self.for_cpu:
            found, allowed = f"target {self.manifest.target}", "ort, openvino"
            raise InputError("runner trt: the build's engine is for a CPU", where=self.folder, found=found, allowed=allowed)
        try:
            return self._engine()
        except MissingError as error:
            engine = self.manifest.engine
            raise MissingError(
                "runner trt: the engine cannot run here",
                where=self.folder / engine.file,
                found=_why(error),
                allowed=f"{engine.backend} {engine.backend_version} on compute capability "
                + ", ".join(engine.compute_capabilities),
                next_command="--runner ort or --runner openvino for its graph on the CPU; ufovit doctor for what is missing",
            ) from error

    def _engine(self) -> _Way:
        from edge.runtime.trt_runner import TrtRunner

        found = authenticate(self.folder, public_key=self.public_key)
        runner = TrtRunner(found.flavour, found.data, found.memory, version_compatible=found.version_compatible)
        ran_on = f"{found.memory.name}: the engine itself"
        return _Way(runner, "trt", ran_on, BatchRange(*runner.batches), tuple(runner.notes))

    def ort(self) -> _Way:
        if self.for_cpu:
            path, data = self.read(self.manifest.engine)
            return _Way(OrtRunner(path, self.threads, data=data), "ort", "ONNX Runtime, CPU: the engine itself")
        graph, typed = source_graph(self.manifest), self.manifest.typed_onnx is not None
        path, data = self.read(graph)
        ran_on = f"the graph that the engine was built from, {_NOT_ITSELF}"
        if not typed:
            return _Way(OrtRunner(path, self.threads, data=data), "ort", f"ONNX Runtime, CPU: {ran_on}")
        slow = "emulating the roundings of FP16 takes time: no measure of speed"
        how = "ONNX Runtime, CPU, its FP16 roundings emulated"
        return _Way(_emulated(data, path, self.threads), "ort", f"{how}: {ran_on}", notes=(slow,))

    def openvino(self) -> _Way:
        from edge.runtime.openvino_runner import OpenVinoRunner

        graph = self._openvino_graph()
        if not is_there(self.folder / graph.file):
            raise InputError(
                "runner openvino: the folder lacks the graph",
                where=self.folder / graph.file,
                found=f"built from {self.manifest.bundle.file}" if self.manifest.bundle else "a folder without its graphs",
                allowed="the build folder that the engine comes from",
                next_command="--runner ort",
            )
        path, data = self.read(graph)
        what = "the Q/DQ graph" if self.manifest.precision == "int8" else "the FP32 graph"
        typed = ", before it was typed for FP16" if self.manifest.typed_onnx else ""
        note = "drift.json tells of another runtime: OpenVINO rounds in its own way"
        runner = OpenVinoRunner(path, self.threads, data=data)
        return _Way(runner, "openvino", f"OpenVINO, CPU: {what} of the build{typed}, {_NOT_ITSELF}", notes=(note,))

    def _openvino_graph(self) -> FileRecord:
        """Raises InputError for "fp16", whose roundings OpenVINO would leave out."""
        if self.manifest.precision == "fp16":
            raise InputError(
                "runner openvino: on a CPU it would compute the FP16 graph in FP32",
                where=self.folder,
                found="precision fp16",
                allowed="int8, fp32",
                next_command="--runner ort, which emulates the roundings of FP16",
            )
        return self.manifest.qdq_onnx or self.manifest.onnx

    def _openvino_fits(self) -> bool:
        record = self.manifest.qdq_onnx
        return self.manifest.precision == "int8" and record is not None and is_there(self.folder / record.file)


def _emulated(typed: bytes, path: Path, threads: int) -> Runner:
    try:
        import onnx
    except ImportError as error:
        raise MissingError("onnx is not installed", next_command="pip install 'ufovit-edge[build]'") from error
    from edge.runtime.emulated import emulated_runner

    return emulated_runner(onnx.load_model_from_string(typed), path, threads)


def _why(error: MissingError) -> str:
    """Why an engine cannot run here, one sentence."""
    if not gpus() and not jetson_module():
        return "this machine has no NVIDIA GPU, or its driver shows none"
    return " ".join(str(error).split())
