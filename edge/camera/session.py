"""One run of `ufovit camera`: opens everything in order, runs the loop, and closes everything again, whatever happens."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from edge.camera.audit import Audit, AuditStatus, AuditWorker, audit_folder, open_reference
from edge.camera.background_sink import BackgroundSink
from edge.camera.camera_request import CameraRequest
from edge.camera.capture import Capture, EveryFrameFeed, FrameFeed, LatestFrameFeed
from edge.camera.frame import Notify, Sink, Source
from edge.camera.latest_frame import LatestFrame
from edge.camera.loop import Loop, Network, Summary
from edge.camera.sinks.recorder import Recorder, recording_fps
from edge.camera.sources.registry import open_source, redact_source
from edge.camera.web.dashboard import Dashboard
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.runtime.open_build import OpenedBuild, open_runner
from edge.tasks.registry import task_of
from engines.build_folder.folder import BuildFolder

_WARM_UPS = 2
RANDOM = "RANDOM: no answer here means anything"


@dataclass(frozen=True)
class View:
    """How results reach the user of the command.

    Attributes:
        sink: title, further rows, whether to block -> the sink that shows results.
        stop: a reason to end, None to continue.
        started: receives what runs, before the first result.
    """

    notify: Notify
    sink: Callable[[str, Callable[[], list[tuple[str, str]]], bool], Sink]
    stop: Callable[[], str | None] = lambda: None
    started: Callable[[dict[str, object]], None] = lambda _fields: None


@dataclass(frozen=True)
class Outcome:
    """The summary of a run, rows of recording, page and audit, and the audit's counts."""

    summary: Summary
    notes: list[tuple[str, str]]
    audit: AuditStatus | None


def run_camera(request: CameraRequest, view: View) -> Outcome:
    """Open, run, close. Raises UfovitError for what cannot be opened; later failures of the source are in the summary."""
    build = BuildFolder(request.build, require_signature=request.public_key)
    build.find(DRIFT_ARTIFACT)  # a contradictory verdict is refused before the engine is loaded
    opened = open_runner(build, request.runner, threads=request.threads)
    with ExitStack() as stack:
        stack.callback(opened.runner.close)
        warm_up(opened)
        session = _Session(request, view, opened, stack)
        for note in (*opened.notes, *cautions(opened)):
            view.notify(f"note: {note}")
        session.add_audit()  # before the camera: a build without a reference is refused at once
        summary = session.run()
    return Outcome(summary, session.notes(), session.audit.status if session.audit is not None else None)


@dataclass
class _Session:
    """What is open. `stack` closes it, last opened first."""

    request: CameraRequest
    view: View
    opened: OpenedBuild
    stack: ExitStack
    sinks: list[Sink] = field(default_factory=list)
    rows: list[Callable[[], tuple[str, str]]] = field(default_factory=list)
    audit: Audit | None = None

    def add_audit(self) -> None:
        request, opened, notify = self.request, self.opened, self.view.notify
        if request.audit is None:
            return
        reference = open_reference(opened.build)
        folder = audit_folder(request.audit_dir or Path("audit"), datetime.now(timezone.utc))
        source = redact_source(request.source)
        worker = AuditWorker(reference, opened.preprocess, opened.manifest, source, folder, notify)
        self.audit = Audit(worker, request.audit, notify)
        self._add(self.audit)

    def run(self) -> Summary:
        """Open the source, the remaining sinks, and run the loop."""
        request, opened = self.request, self.opened
        source_stack = self.stack.enter_context(ExitStack())
        source = self._open_source()
        source_stack.callback(source.close)
        request.check_source(live=source.live)
        self._add_recorder(source)
        self._add_page()
        network = Network(opened.runner, opened.preprocess, task_of(opened.manifest), opened.batch.min, request.top_k)
        title = f"{opened.manifest.model} {opened.manifest.precision}, {opened.ran_on}, {redact_source(request.source)}"
        feed: FrameFeed
        if request.every_frame:
            feed = EveryFrameFeed(source)
        else:
            reconnect = request.reconnect(live=source.live)
            capture = Capture(self._open_source, LatestFrame(time.monotonic), reconnect, time.monotonic, self.view.notify)
            feed = LatestFrameFeed(capture, source)
        source_stack.pop_all()  # the feed closes the source in the thread that reads it
        self.stack.callback(feed.stop)
        self.view.started(start_fields(request, opened))
        # last, so that it is closed first, and the final messages of other sinks stay on the terminal
        self._add(self.view.sink(title, self.notes, request.every_frame))
        return Loop(network, feed, self.sinks, request.limits).run(self.view.stop)

    def notes(self) -> list[tuple[str, str]]:
        """Rows of audit, recording and page, as of now."""
        return [*self._audit_notes().items(), *(row() for row in self.rows)]

    def _audit_notes(self) -> dict[str, str]:
        return {} if self.audit is None else {"audit": str(self.audit.status)}

    def _add_recorder(self, source: Source) -> None:
        request, notify = self.request, self.view.notify
        if request.record is None:
            return
        fps = recording_fps(source.fps, request.limits.max_fps)
        recorder = Recorder(request.record, fps, each=request.every_frame, notify=notify)
        background = BackgroundSink("recording", recorder.process, recorder.close, block=request.every_frame, notify=notify)
        self._add(background)

        def row() -> tuple[str, str]:
            state = f"{recorder.frames} frames in {request.record}, {background.skipped} results skipped"
            return "recording", state if background.failure is None else "ended early, see above"

        self.rows.append(row)

    def _add_page(self) -> None:
        request, opened = self.request, self.opened
        if request.page_address is None:
            return
        rows, layout = identity_rows(request, opened), task_of(opened.manifest).panel_layout()
        dashboard = Dashboard(rows, layout, *request.page_address, request.token, notes=self._audit_notes)
        self._add(dashboard)
        url = dashboard.start()
        self.rows.append(lambda: ("page", f"{url}, {dashboard.broadcast.viewers} viewers"))
        self.view.notify(f"page: {url}" + (f"\ntoken: {dashboard.token}" if dashboard.token and request.token is None else ""))

    def _add(self, sink: Sink) -> None:
        self.sinks.append(sink)
        self.stack.callback(sink.close)

    def _open_source(self) -> Source:
        return open_source(self.request.source, loop=self.request.loop, notify=self.view.notify)


def warm_up(opened: OpenedBuild) -> None:
    """Run the network on the golden image, so that one-time costs are paid before the first frame."""
    images = opened.golden_images(opened.batch.min)
    for _ in range(_WARM_UPS):
        opened.runner(images)


def identity_rows(request: CameraRequest, opened: OpenedBuild) -> dict[str, str]:
    """What runs: rows for the page."""
    manifest = opened.manifest
    rows = {
        "model": f"{manifest.model} {manifest.precision}, target {manifest.target}",
        "verdict": _verdict(opened.build),
        "engine": f"{manifest.engine.file}, {manifest.engine.backend} {manifest.engine.backend_version}",
        "engine sha256": manifest.engine.sha256,
        "ran on": opened.ran_on,
        "source": redact_source(request.source),
        "built": manifest.created,
    }
    if manifest.random_weights:
        rows["weights"] = RANDOM
    return rows


def start_fields(request: CameraRequest, opened: OpenedBuild) -> dict[str, object]:
    """What runs: for programs."""
    manifest = opened.manifest
    return {
        "model": manifest.model,
        "precision": manifest.precision,
        "target": manifest.target,
        "engine_sha256": manifest.engine.sha256,
        "verdict": _verdict(opened.build).partition(":")[0],
        "runner": opened.name,
        "ran_on": opened.ran_on,
        "source": redact_source(request.source),
        **task_of(manifest).start_fields(),
        "random_weights": manifest.random_weights,
    }


def cautions(opened: OpenedBuild) -> list[str]:
    """What a person should know about a build before trusting its answers."""
    notes = [f"weights {RANDOM}"] if opened.manifest.random_weights else []
    verdict = _verdict(opened.build)
    if not verdict.startswith("pass"):
        notes.append(f"this build's verdict: {verdict}")
    return notes


def _verdict(build: BuildFolder) -> str:
    drift = build.find(DRIFT_ARTIFACT)
    return "not judged" if drift is None else f"{drift.verdict}: {drift.reason}"
