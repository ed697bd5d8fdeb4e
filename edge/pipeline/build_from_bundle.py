"""`ufovit build --bundle`: build and judge an engine on the device. Needs numpy and TensorRT; judging needs pycuda too.

unpack   bundle -> the graph, the certificate and calibration table that go with it, and the golden pair
engine   graph -> engine, manifest.json: the source build's, with the engine, receipt and target of this device
drift    engine on the bundle's images against the stored FP32 answers -> drift.json, logits.npz, flips.npz
"""

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from calib.errors import EvidenceError, MissingError, UsageError
from calib.files import write_bytes
from edge.drift.drift_report import Source
from edge.drift.stored_reference import StoredAnswers
from edge.images.golden_pair import GoldenPair, check_golden, write_golden
from edge.images.preprocess import read_preprocess
from edge.pipeline.builder_options import DEFAULT_BUILDER, BuilderRequest
from edge.pipeline.pack_bundle import BundledImages, budget_of, packed_digests, read_bundled_images, read_source
from edge.pipeline.steps.drift import Question, drift_step, judge_build
from edge.pipeline.steps.engine import RANDOM_NOTE, write_engine
from edge.pipeline.workspace import RANDOM_WEIGHTS_NOTICE, BuildOutcome, Step, Workspace
from edge.progress import Advance, Progress
from edge.runtime.engine_runner import open_engine
from engines.backends import require_backend
from engines.build import build_graph
from engines.build_folder.bundle_format import GOLDEN as GOLDEN_MEMBER
from engines.build_folder.bundle_format import Bundle, verify_bundle
from engines.build_folder.file_names import ARTIFACTS, GOLDEN, MANIFEST
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest, FileRecord, write_manifest
from engines.build_folder.signature import check_listed, read_signature, signature_path
from engines.build_spec import BatchRange, BuildSpec, Precision
from engines.hardware import gpus, versions
from engines.targets import Target


@dataclass(frozen=True)
class DeviceRequest:
    """A build from a bundle. Raises UsageError for a target that TensorRT or TensorRT-RTX does not build for.

    Attributes:
        public_key: PEM file of the key that must have signed the bundle; None if a signature is not required.
        force: run every step, whatever an earlier build left.
    """

    bundle: Path
    target: Target
    out: Path
    builder: BuilderRequest = DEFAULT_BUILDER
    public_key: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.target.backend not in ("trt", "trt_rtx"):
            raise UsageError(
                "a bundle can be built for a GPU only",
                where="--target",
                found=f"target {self.target.name}",
                allowed="a target that TensorRT builds for",
            )
        self.builder.options(self.target, self.out)


def build_on_device(request: DeviceRequest, progress: Progress) -> BuildOutcome:
    """Build and judge. Raises UfovitError; the bundle is checked before anything is written.

    Raises EvidenceError where no GPU can run the engine: engine and receipt are written, but the drift is unknown.
    """
    bundle = verify_bundle(request.bundle)
    if request.public_key is not None:
        signature = read_signature(request.bundle, request.public_key)
        check_listed(signature, signature_path(request.bundle), {request.bundle.name: bundle.sha256})
    source = read_source(bundle)
    preprocess, bundled = read_preprocess(source), read_bundled_images(bundle, source)
    check_golden(bundled.golden, preprocess, f"{GOLDEN_MEMBER}: the first test image")
    info, out = bundle.info, request.out
    precision: Precision = info.precision  # type: ignore[assignment]  # BuildSpec refuses any other
    spec = BuildSpec(out / info.graph, request.target, precision, BatchRange(*info.batch), info.int8_floor)
    if info.random_weights:
        progress.say(RANDOM_WEIGHTS_NOTICE)

    def preflight(first_step: str) -> None:
        if first_step != "drift":
            require_backend(request.target.backend)

    opened = Workspace.open(out, ARTIFACTS, force=request.force, on_wait=progress.say, before_change=preflight)
    with opened as workspace:
        workspace.run(_unpack_step(bundle, source, bundled.golden), progress)
        workspace.run(_engine_step(request, bundle, source, spec), progress)
        workspace.run(_drift_step(BuildFolder(out, building=True), bundle, source, bundled), progress)
        return workspace.outcome()


def _unpack_step(bundle: Bundle, source: EngineManifest, golden: GoldenPair) -> Step:
    files = packed_digests(source)

    def unpack(folder: Path, advance: Advance) -> None:
        for done, file in enumerate(files, start=1):
            write_bytes(folder / file, bundle.read(file))
            advance(done / len(files))
        write_golden(folder / GOLDEN, golden)

    return Step("unpack", {"bundle": bundle.sha256}, (*files, GOLDEN), unpack)


def _engine_step(request: DeviceRequest, bundle: Bundle, source: EngineManifest, spec: BuildSpec) -> Step:
    out, target, file = request.out, request.target, f"engine{request.target.engine_suffix}"
    reads = {
        "bundle": bundle.sha256,
        "target": target.name,
        "builder": request.builder.as_json(target, out),
        "versions": versions("tensorrt_rtx", "tensorrt"),
    }

    def build_engine(folder: Path, advance: Advance) -> None:
        options = request.builder.options(target, out)
        built = build_graph(replace(spec, options=options), spec.onnx.read_bytes(), bundle.info.facts, advance)
        record = write_engine(folder / file, built, request.builder, request.builder.cache(target, out))
        where = f" on {record.device}" if record.device else ""
        manifest = replace(
            source,
            target=target.name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            engine=record,
            receipt=built.receipt,
            batch=(built.batch.min, built.batch.opt, built.batch.max),
            bundle=FileRecord(request.bundle.name, bundle.sha256),
            notes=(*([RANDOM_NOTE] if bundle.info.random_weights else []), f"built from a bundle{where}"),
        )
        write_manifest(folder, manifest)

    return Step("engine", reads, (file, MANIFEST), build_engine)


def _drift_step(build: BuildFolder, bundle: Bundle, source: EngineManifest, bundled: BundledImages) -> Step:
    """`steps.drift` with the bundle's images and answers; runs again when the GPUs of this machine change."""
    info = bundle.info
    reference = Source(info.reference.file, info.reference.sha256, info.reference_ran_on)
    stored = StoredAnswers(
        bundle.path, reference, info.data_sha256, str(source.preprocess["sha256"]), bundled.outputs, bundle.sha256
    )
    question = Question(bundled.images, labelled=bundled.labelled, budget=budget_of(bundle), stored=stored)
    step = drift_step(build, question, here=True)

    def judge(folder: Path, advance: Advance) -> None:
        try:
            runner = open_engine(build)
        except MissingError as error:
            raise EvidenceError(
                "the engine is built and its receipt passed, but this machine cannot run it: its drift is unknown",
                where=build.path,
                found=str(error).splitlines()[0],
                next_command="ufovit build --bundle on a machine with the target's GPU",
            ) from error
        judge_build(build, question, build.manifest.engine.file, folder, advance, runner)

    return replace(step, reads={**step.reads, "gpus": [asdict(gpu) for gpu in gpus()]}, run=judge)
