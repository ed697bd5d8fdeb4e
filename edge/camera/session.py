"""One run of `ufovit camera`: opens everything in order, runs the loop, and closes everything again, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from edge.camera.audit import Audit, AuditContext, AuditStatus, AuditWorker, audit_folder, open_reference
from edge.camera.background_sink import BackgroundSink
from edge.camera.camera_request import CameraRequest
from edge.camera.capture import CaptureContext
from edge.camera.frame import Notify, Sink
from edge.camera.frame_feed import EveryFrameFeed, FrameFeed, LatestFrameFeed
from edge.camera.frame_source import PlaybackOptions, Source
from edge.camera.latest_frame import LatestFrame
from edge.camera.loop import Loop, Network, Summary
from edge.camera.sinks.recorder import Recorder, recording_fps
from edge.camera.sources.registry import open_source, redact_source
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.tasks.registry import task_of
from engines.build_folder.folder import BuildFolder

if TYPE_CHECKING:
    from edge.camera.web.dashboard import Dashboard
    from edge.runtime.open_build import OpenedBuild

_WARM_UPS = 2
RANDOM = "RANDOM: no answer here means anything"


@dataclass(frozen=True)
class View:
    """How results reach the user of the command.

    Attributes:
        notify: shows a message to a person.
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
    from edge.runtime.open_build import open_runner

    build = BuildFolder(request.build, require_signature=request.public_key)
    opened = open_runner(build, request.runner, threads=request.threads)
    with ExitStack() as stack:
        stack.callback(opened.runner.close)
        warm_up(opened)
        session = _Session(request, view, opened, stack)
        for note in (*opened.notes, *cautions(opened)):
            view.notify(f"note: {note}")
        session.add_audit()  # before the camera: a build without a reference is refused at once
        source = session.open_source()
        session.add_recorder(source)
        session.add_page()
        summary = session.run(source)
    return Outcome(summary, session.notes(), session.audit.status if session.audit is not None else None)


@dataclass
class _Session:
    """What is open. `stack` closes it, last opened first."""

    request: CameraRequest
    view: View
    opened: OpenedBuild
    stack: ExitStack
    sinks: list[Sink] = field(default_factory=list)
    audit: Audit | None = None
    page: tuple[Dashboard, str] | None = None
    recorder: tuple[Recorder, BackgroundSink] | None = None
    source_stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.stack.enter_context(self.source_stack)

    def add_audit(self) -> None:
        request, manifest = self.request, self.opened.manifest
        if request.audit is None:
            return
        reference = open_reference(self.opened.build)
        folder = audit_folder(request.audit_dir or Path("audit"), datetime.now(timezone.utc))
        context = AuditContext(reference, self.opened.preprocess, manifest, redact_source(request.source))
        self.audit = Audit(AuditWorker(context, folder, self.view.notify), request.audit, self.view.notify)
        self._add(self.audit)

    def open_source(self) -> Source:
        source = self._open()
        self.source_stack.callback(source.close)
        self.request.check_source(live=source.live)
        return source

    def add_recorder(self, source: Source) -> None:
        request, notify = self.request, self.view.notify
        if request.record is None:
            return
        fps = recording_fps(source.fps, request.limits.max_fps)
        recorder = Recorder(request.record, fps, each=request.every_frame, notify=notify)
        background = BackgroundSink("recording", recorder, block=request.every_frame, notify=notify)
        self.recorder = recorder, background
        self._add(background)

    def add_page(self) -> None:
        page, opened = self.request.page, self.opened
        if page is None:
            return
        from edge.camera.web.dashboard import Dashboard

        identity, notes = identity_rows(self.request, opened), lambda: dict(self._audit_notes())
        layout = task_of(opened.manifest).panel_layout()
        dashboard = Dashboard(identity, layout, page.host, page.port, page.token, notes=notes)
        self._add(dashboard)
        url = dashboard.start()
        self.page = dashboard, url
        self.view.notify(f"page: {url}" + (f"\ntoken: {dashboard.token}" if dashboard.token and page.token is None else ""))

    def run(self, source: Source) -> Summary:
        """The loop. The view is closed first, so that the final messages of other sinks stay on the terminal."""
        request, opened = self.request, self.opened
        network = Network(opened.runner, opened.preprocess, task_of(opened.manifest), opened.batch.min, request.top_k)
        title = f"{opened.manifest.model} {opened.manifest.precision}, {opened.ran_on}, {redact_source(request.source)}"
        feed = self._feed(source)
        self.source_stack.pop_all()  # the feed closes the source in the thread that reads it
        self.stack.callback(feed.stop)
        self.view.started(start_fields(request, opened))
        self._add(self.view.sink(title, self.notes, request.every_frame))
        return Loop(network, feed, self.sinks, request.limits).run(self.view.stop)

    def notes(self) -> list[tuple[str, str]]:
        """Rows of audit, recording and page, as of now."""
        rows = self._audit_notes()
        if self.recorder is not None:
            recorder, background = self.recorder
            state = f"{recorder.frames} frames in {self.request.record}, {background.skipped} results skipped"
            rows.append(("recording", state if background.failure is None else "ended early, see above"))
        if self.page is not None:
            rows.append(("page", f"{self.page[1]}, {self.page[0].viewers} viewers"))
        return rows

    def _audit_notes(self) -> list[tuple[str, str]]:
        return [] if self.audit is None else [("audit", str(self.audit.status))]

    def _add(self, sink: Sink) -> None:
        self.sinks.append(sink)
        self.stack.callback(sink.close)

    def _open(self) -> Source:
        return open_source(self.request.source, PlaybackOptions(loop=self.request.loop, notify=self.view.notify))

    def _feed(self, source: Source) -> FrameFeed:
        if self.request.every_frame:
            return EveryFrameFeed(source)
        reconnect = self.request.reconnect(live=source.live)
        context = CaptureContext(self._open, LatestFrame(time.monotonic), reconnect, time.monotonic, self.view.notify)
        return LatestFrameFeed(context, source)


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
