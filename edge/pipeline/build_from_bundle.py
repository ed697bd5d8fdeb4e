"""From a bundle to a verdict, on the device: what `ufovit build --bundle` does. Needs numpy and TensorRT, to judge pycuda too.

unpack   bundle -> the graph, the certificate and calibration table that go with it, and the golden pair
engine   graph -> engine, manifest.json: the source build's, with the engine, receipt and target of this device
drift    engine on the bundle's images against the stored FP32 answers -> drift.json, logits.npz, flips.npz
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from calib.errors import EvidenceError, InputError, MissingError
from calib.files import write_bytes
from edge.drift.drift_report import DRIFT_ARTIFACT, Source
from edge.drift.stored_reference import StoredAnswers
from edge.images.golden_pair import check_golden, write_golden
from edge.images.labelled_images import ImageSet
from edge.images.preprocess import read_preprocess
from edge.pipeline.builder_options import DEFAULT_BUILDER, BuilderRequest
from edge.pipeline.pack_bundle import BundledImages, packed_digests, read_bundled_images, read_source
from edge.pipeline.step import BuildOutcome, Step, run_step
from edge.pipeline.steps.drift_step import Question, drift
from edge.pipeline.steps.engine_step import RANDOM_NOTE, write_engine
from edge.pipeline.workspace import Workspace
from edge.progress import Advance, Progress
from edge.runtime.engine_runner import open_engine
from engines.backends import require_backend
from engines.build_folder.bundle_format import GOLDEN as GOLDEN_MEMBER
from engines.build_folder.bundle_format import Bundle, verify_bundle
from engines.build_folder.file_names import ANSWERS, ARTIFACTS, DRIFT, GOLDEN, MANIFEST, PICTURES
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest, FileRecord, write_manifest
from engines.build_spec import BatchRange, BuildSpec, Precision
from engines.hardware import gpus, versions
from engines.targets import Target


@dataclass(frozen=True)
class DeviceRequest:
    """A build from a bundle.

    Attributes:
        bundle: the file.
        target: what the engine is for; one that TensorRT or TensorRT-RTX builds for.
        out: the build folder; None for build/BUNDLE-TARGET, BUNDLE being the file's name.
        builder: what TensorRT is told beyond the graph.
        public_key: PEM file of the key that must have signed the bundle; None if none has to.
        force: run every step, whatever an earlier build left.
    """

    bundle: Path
    target: Target
    out: Path | None = None
    builder: BuilderRequest = DEFAULT_BUILDER
    public_key: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.target.backend not in ("trt", "trt_rtx"):
            raise InputError(
                "a bundle holds a graph for GPUs",
                found=f"target {self.target.name}",
                allowed="a target that TensorRT builds for",
            )
        self.builder.check(self.target, self.folder)

    @property
    def folder(self) -> Path:
        """The build folder."""
        return self.out or Path("build") / f"{self.bundle.stem}-{self.target.name}"


def run_bundle(request: DeviceRequest, progress: Progress) -> BuildOutcome:
    """Build and judge. Raises UfovitError; the bundle is checked before anything is written.

    Raises EvidenceError, the engine and its receipt being there, where no GPU can run it: then nothing is known of its drift.
    """
    bundle, _ = verify_bundle(request.bundle)
    if request.public_key is not None:
        from engines.build_folder.signature import check_listed, read_signature, signature_path

        signature = read_signature(request.bundle, request.public_key)
        check_listed(signature, signature_path(request.bundle), {request.bundle.name: bundle.sha256})
    info, source = bundle.info, read_source(bundle)
    preprocess, images = read_preprocess(source), read_bundled_images(bundle, len(source.labels))
    check_golden(images.golden_pair, preprocess, f"{GOLDEN_MEMBER}: the first test image")
    out = request.folder
    precision: Precision = info.precision  # type: ignore[assignment]  # BuildSpec refuses any other
    spec = BuildSpec(out / info.graph, request.target, precision, BatchRange(*info.batch), info.int8_floor)
    if info.random_weights:
        progress.say("RANDOM WEIGHTS: nothing below says anything about accuracy; every artifact is stamped")

    def preflight(first_step: str) -> None:
        if first_step != "drift":
            require_backend(request.target.backend)

    opened = Workspace.open(out, ARTIFACTS, force=request.force, on_wait=progress.say, before_change=preflight)
    with opened as workspace:
        build = _DeviceBuild(request, bundle, source, spec, workspace, progress)
        build.unpack(images)
        build.engine()
        build.drift(images)
        return BuildOutcome(out, BuildFolder(out).read(DRIFT_ARTIFACT).verdict, tuple(workspace.ran), tuple(workspace.reused))


@dataclass(frozen=True)
class _DeviceBuild:
    """One build from a bundle under way."""

    request: DeviceRequest
    bundle: Bundle
    source: EngineManifest
    spec: BuildSpec
    workspace: Workspace
    progress: Progress

    @property
    def out(self) -> Path:
        return self.request.folder

    def unpack(self, images: BundledImages) -> None:
        files = packed_digests(self.source)

        def run(advance: Advance) -> None:
            for done, file in enumerate(files, start=1):
                write_bytes(self.out / file, self.bundle.read(file))
                advance(done / len(files))
            write_golden(self.out / GOLDEN, images.golden_pair)

        self._step("unpack", {"bundle": self.bundle.sha256}, (*files, GOLDEN), run)

    def engine(self) -> None:
        request, info = self.request, self.bundle.info
        reads = {
            "bundle": self.bundle.sha256,
            "target": request.target.name,
            "builder": request.builder.as_json(request.target, self.out),
            "versions": versions("tensorrt_rtx", "tensorrt"),
        }

        def run(advance: Advance) -> None:
            from engines.build import build_graph

            options = request.builder.options(request.target, self.out)
            spec = replace(self.spec, options=options)
            built = build_graph(spec, spec.onnx.read_bytes(), info.facts, advance)
            record = write_engine(self.out, f"engine{request.target.engine_suffix}", built, options)
            request.builder.cache(request.target, self.out).write(built.timing_cache)
            where = f" on {record.device}" if record.device else ""
            manifest = replace(
                self.source,
                target=request.target.name,
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                engine=record,
                receipt=built.receipt,
                bundle=FileRecord(request.bundle.name, self.bundle.sha256),
                notes=(*([RANDOM_NOTE] if info.random_weights else []), f"built from a bundle{where}"),
            )
            write_manifest(self.out, manifest)

        self._step("engine", reads, (f"engine{request.target.engine_suffix}", MANIFEST), run)

    def drift(self, images: BundledImages) -> None:
        info = self.bundle.info
        reference = Source(info.reference.file, info.reference.sha256, info.reference_ran_on)
        preprocess_sha256 = str(self.source.preprocess["sha256"])
        stored = StoredAnswers(
            self.bundle.path, reference, info.data_sha256, preprocess_sha256, (images.answers,), self.bundle.sha256
        )
        source = f"{len(images.pixels)} images of {info.data}, in {self.request.bundle.name}"
        names = tuple(str(i) for i in range(len(images.pixels)))
        shown = ImageSet(source, names, images.labels, info.data_sha256, images.pixels.__getitem__)
        question = Question(shown, labelled=True, budget_points=info.budget_points, stored=stored)
        here = [asdict(gpu) for gpu in gpus()]
        reads = {"manifest": self.workspace.sha256(MANIFEST), "bundle": self.bundle.sha256, "gpus": here}

        def run(advance: Advance) -> None:
            build = BuildFolder(self.out)
            try:
                runner = open_engine(build)
            except MissingError as error:
                raise EvidenceError(
                    "the engine is built and its receipt holds, but nothing here can run it: its drift is not known",
                    where=self.out,
                    found=str(error).splitlines()[0],
                    next_command="ufovit build --bundle on a machine with the target's GPU",
                ) from error
            drift(build, question, build.manifest.engine.file, advance, runner)

        self._step("drift", reads, (DRIFT, ANSWERS, PICTURES), run)

    def _step(self, name: str, reads: dict[str, Any], writes: tuple[str, ...], run: Callable[[Advance], None]) -> None:
        run_step(self.workspace, self.progress, Step(name, reads, writes, run))
