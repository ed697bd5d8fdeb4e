"""One run of `ufovit camera`: everything opened in order, the loop, everything closed again, whatever happens in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import InputError
from edge.camera.audit import Audit, Audited, AuditWork, Standing, audit_folder, open_reference
from edge.camera.background_sink import Background
from edge.camera.camera_request import CameraRequest
from edge.camera.capture import Capturing
from edge.camera.frame import Sink
from edge.camera.frame_feed import EveryFrame, Frames, NewestFrames
from edge.camera.latest_frame import Slot
from edge.camera.loop import Loop, Network, Summary
from edge.camera.reconnect import Reconnect
from edge.camera.sinks.recorder import Recorder, recording_fps
from edge.camera.sources.open_source import open_source
from edge.camera.sources.source import Playing, Source
from edge.drift.compare import read_drift
from engines.build_folder.file_names import DRIFT

if TYPE_CHECKING:
    from edge.camera.web.dashboard import Dashboard
    from edge.runtime.open_build import Opened

Say = Callable[[str], None]
_WARM_UPS = 2
RANDOM = "RANDOM: no answer here means anything"


@dataclass(frozen=True)
class View:
    """How results reach who started the program.

    Attributes:
        say: a message for a person.
        sink: title, rows of others, whether to wait for it -> the sink that shows results.
        stop: why to end because of it, None to go on.
        started: told what runs, before the first result.
    """

    say: Say
    sink: Callable[[str, Callable[[], list[tuple[str, str]]], bool], Sink]
    stop: Callable[[], str | None] = lambda: None
    started: Callable[[dict[str, object]], None] = lambda _fields: None


@dataclass(frozen=True)
class Outcome:
    """The summary of a run, what others have to add to it, and how the audit stands."""

    summary: Summary
    notes: list[tuple[str, str]]
    audit: Standing | None


def run_camera(request: CameraRequest, view: View) -> Outcome:
    """Open, run, close. Raises UfovitError for what cannot be opened; later faults of the source are in the summary."""
    from edge.runtime.open_build import open_runner

    opened = open_runner(request.build, request.runner, public_key=request.public_key, threads=request.threads)
    with ExitStack() as stack:
        stack.callback(opened.runner.close)
        warm_up(opened)
        session = _Session(request, view, opened, stack)
        for note in (*opened.notes, *cautions(request.build, opened)):
            view.say(f"note: {note}")
        session.add_audit()
        session.open_source()
        session.add_recorder()
        session.add_page()
        summary = session.run()
    return Outcome(summary, session.notes(), session.audit.standing if session.audit is not None else None)


@dataclass
class _Session:
    """What is open. `stack` closes it, last opened first."""

    request: CameraRequest
    view: View
    opened: Opened
    stack: ExitStack
    sinks: list[Sink] = field(default_factory=list)
    audit: Audit | None = None
    page: tuple[Dashboard, str] | None = None
    recorder: tuple[Recorder, Background] | None = None
    source: Source | None = None

    def add_audit(self) -> None:
        """The reference is opened before the camera: a build without one is refused at once."""
        request, manifest = self.request, self.opened.manifest
        if request.audit is None:
            return
        reference = open_reference(request.build, manifest)
        folder = audit_folder(request.audit_folder, datetime.now(timezone.utc))
        about = Audited(reference, self.opened.preprocess, manifest, shown_source(request.source))
        self.audit = Audit(AuditWork(about, folder, self.view.say), request.audit, self.view.say)
        self._add(self.audit)

    def open_source(self) -> None:
        self.source = self._open()
        self.stack.callback(self._close_source)
        self.request.check_source(live=self.source.live)

    def add_recorder(self) -> None:
        request = self.request
        if request.record is None or self.source is None:
            return
        fps = recording_fps(self.source.fps, request.limits.max_fps)
        recorder = Recorder(request.record, fps, each=request.every_frame, say=self.view.say)
        background = Background("recording", recorder, wait=request.every_frame, say=self.view.say)
        self.recorder = recorder, background
        self._add(background)

    def add_page(self) -> None:
        page, opened = self.request.page, self.opened
        if page is None:
            return
        from edge.camera.web.dashboard import Dashboard

        identity = identity_rows(self.request, opened)
        dashboard = Dashboard(
            identity, opened.manifest.labels, page.host, page.port, page.token, notes=lambda: dict(self._audit_notes())
        )
        self._add(dashboard)
        url = dashboard.start()
        self.page = dashboard, url
        self.view.say(f"page: {url}" + (f"\ntoken: {dashboard.token}" if dashboard.token and page.token is None else ""))

    def run(self) -> Summary:
        """The loop; the view is closed first, so that what others say at their end stays on the terminal."""
        request, opened = self.request, self.opened
        labels = opened.manifest.labels
        network = Network(opened.runner, opened.preprocess, labels, opened.batch.min, min(request.top_k, len(labels)))
        title = f"{opened.manifest.model} {opened.manifest.precision}, {opened.ran_on}, {shown_source(request.source)}"
        frames = self._frames()
        self.source = None  # whoever reads it closes it: no device likes to be closed while it is read
        self.stack.callback(frames.stop)
        self.view.started(start_fields(request, opened))
        self._add(self.view.sink(title, self.notes, request.every_frame))
        return Loop(network, frames, self.sinks, request.limits).run(self.view.stop)

    def notes(self) -> list[tuple[str, str]]:
        """What is to be said besides the answers, now."""
        rows = self._audit_notes()
        if self.recorder is not None:
            recorder, background = self.recorder
            state = f"{recorder.frames} frames in {self.request.record}, {background.skipped} results skipped"
            rows.append(("recording", state if background.failure is None else "ended early, see above"))
        if self.page is not None:
            rows.append(("page", f"{self.page[1]}, {self.page[0].viewers} viewers"))
        return rows

    def _audit_notes(self) -> list[tuple[str, str]]:
        return [] if self.audit is None else [("audit", str(self.audit.standing))]

    def _add(self, sink: Sink) -> None:
        self.sinks.append(sink)
        self.stack.callback(sink.close)

    def _close_source(self) -> None:
        if self.source is not None:
            self.source.close()

    def _open(self) -> Source:
        return open_source(self.request.source, Playing(loop=self.request.loop, say=self.view.say))

    def _frames(self) -> Frames:
        source = self.source
        if source is None:
            raise InputError("the source is not open")
        if self.request.every_frame:
            return EveryFrame(source)
        reconnect = Reconnect(self.request.reconnect_for_s(live=source.live))
        about = Capturing(self._open, Slot(time.monotonic), reconnect, time.monotonic, self.view.say)
        return NewestFrames(about, source)


def warm_up(opened: Opened) -> None:
    """Run the network on the golden image, so that what happens once happens before the first frame."""
    images = opened.golden_images(opened.batch.min)
    for _ in range(_WARM_UPS):
        opened.runner(images)


def shown_source(text: str) -> str:
    """The source for people: the address of a stream without its passwords."""
    from edge.camera.sources.open_source import STREAMS
    from edge.camera.sources.rtsp import shown

    return shown(text) if text.partition("://")[0].lower() in STREAMS else text


def identity_rows(request: CameraRequest, opened: Opened) -> dict[str, str]:
    """What runs: rows for the page."""
    manifest = opened.manifest
    rows = {
        "model": f"{manifest.model} {manifest.precision}, target {manifest.target}",
        "verdict": _verdict(request.build),
        "engine": f"{manifest.engine.file}, {manifest.engine.backend} {manifest.engine.backend_version}",
        "engine sha256": manifest.engine.sha256,
        "ran on": opened.ran_on,
        "source": shown_source(request.source),
        "built": manifest.created,
    }
    if manifest.random_weights:
        rows["weights"] = RANDOM
    return rows


def start_fields(request: CameraRequest, opened: Opened) -> dict[str, object]:
    """What runs: for programs."""
    manifest = opened.manifest
    return {
        "model": manifest.model,
        "precision": manifest.precision,
        "target": manifest.target,
        "engine_sha256": manifest.engine.sha256,
        "verdict": _verdict(request.build).partition(":")[0],
        "runner": opened.name,
        "ran_on": opened.ran_on,
        "source": shown_source(request.source),
        "labels": list(manifest.labels),
        "random_weights": manifest.random_weights,
    }


def cautions(folder: Path, opened: Opened) -> list[str]:
    """What a person should know of a build before believing its answers."""
    found = [f"weights {RANDOM}"] if opened.manifest.random_weights else []
    verdict = _verdict(folder)
    if not verdict.startswith("pass"):
        found.append(f"this build's verdict: {verdict}")
    return found


def _verdict(folder: Path) -> str:
    path = folder / DRIFT
    if not path.is_file():
        return "not judged"
    drift = read_drift(path)
    return f"{drift.verdict}: {drift.reason}"
