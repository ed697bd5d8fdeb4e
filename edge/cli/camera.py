"""`ufovit camera`: run a build on the newest frame of a camera; results on the terminal, as JSON, as video, on a web page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import MissingError, UsageError, VerdictError
from calib.printable import one_line
from edge.camera.camera_request import CameraOptions, CameraRequest
from edge.cli.console import SafeConsole, discard_stdout

if TYPE_CHECKING:
    from edge.camera.background_sink import BackgroundSink
    from edge.camera.frame import Sink
    from edge.camera.session import Outcome, View

_LAST_LINES = 1024
"""Lines that are queued for a program that reads slowly, before some are dropped."""
_TOKEN_VARIABLE = "UFOVIT_TOKEN"  # noqa: S105  # the name of a variable
_DEFAULT = CameraOptions()


def camera(build: Path, /, *, source: str, json: bool = False, options: CameraOptions = _DEFAULT) -> int:
    """Run a build on a camera, stream, video or folder, until it ends, a limit is reached, or Ctrl-C.

    Exit codes: 0 ended as requested (Ctrl-C and SIGTERM too), 1 the network's output was NaN or infinity, 2 bad input,
    4 something this machine lacks: no camera, a busy one, one that is disconnected for good.

    Args:
        build: A build folder
        source: Where frames come from: /dev/video0 or 0, csi://0, rtsp://..., http://..., a video file, an image folder,
            synthetic://?size=640x480&fps=30
        json: One JSON object per result on stdout; messages go to stderr
    """
    from edge.camera.forced_exit import run_with_forced_exit

    request = _with_token(CameraRequest(build, source, **vars(options)))
    return run_with_forced_exit(lambda: _run(request, _Output(as_json=json)))


def _with_token(request: CameraRequest) -> CameraRequest:
    """The request with the token of its file or of the environment, where the page has one. Raises UsageError."""
    from edge.camera.web.token import check_token

    token, where = request.token, "--token"
    if request.token_file is not None:
        from engines.build_folder.keys import read_secret_line

        if token is not None:
            raise UsageError("--token and --token-file exclude each other", where="--token-file", found=request.token_file)
        where = str(request.token_file)
        token = read_secret_line(request.token_file, "write the token into it, and chmod 600").decode(errors="replace")
    elif token is None and request.serve is not None:
        token, where = os.environ.get(_TOKEN_VARIABLE) or None, _TOKEN_VARIABLE
    return request if token is None else replace(request, token=check_token(token, where), token_file=None)


def _run(request: CameraRequest, output: _Output) -> int:
    from edge.camera.session import run_camera

    try:
        outcome = run_camera(request, output.view())
    except KeyboardInterrupt:  # the loop has its own; this one came while things were opened or closed
        output.say("interrupted before the first frame, or again while closing")
        return 0
    output.conclude(outcome)
    return 0 if output.gone() and outcome.summary.error is None else _exit_code(outcome)


def _exit_code(outcome: Outcome) -> int:
    """0. Raises what ended the run otherwise."""
    summary = outcome.summary
    if summary.error is not None:
        raise summary.error
    if summary.not_finite:
        raise VerdictError(
            "the network's output contains NaN or infinity",
            where="--source",
            found=f"{summary.not_finite} of {summary.not_finite + summary.results} frames",
            next_command="ufovit certify on the build's model.onnx: does FP16 overflow?",
        )
    if not summary.results and summary.ended != "interrupted":
        raise MissingError("no frame arrived", found=summary.ended, next_command="allow more time, or check the source")
    return 0


class _Output:
    """Prints results and messages: a live view, plain lines, or JSON for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._out = SafeConsole(soft_wrap=True)
        self._live = not as_json and self._out.is_terminal
        self._messages = self._out if self._live else SafeConsole(stderr=True, soft_wrap=True)
        self._lines: BackgroundSink | None = None
        self._broken = False

    def view(self) -> View:
        """For `run_camera`."""
        from edge.camera.session import View

        closed = "the output was closed by its reader"
        return View(self.say, self._sink, lambda: closed if self.gone() else None, self._started)

    def conclude(self, outcome: Outcome) -> None:
        """Print the summary, unless the reader closed the output."""
        from edge.camera.sinks.json_lines import JsonLines, summary_fields
        from edge.camera.sinks.terminal import print_summary

        if self.gone():
            discard_stdout()
            return
        try:
            if self._json:
                audit = vars(outcome.audit) if outcome.audit is not None else None
                JsonLines(sys.stdout).write(summary_fields(outcome.summary, audit))
            print_summary(self._messages if self._json else self._out, outcome.summary, outcome.notes)
            sys.stdout.flush()
        except (BrokenPipeError, SystemExit):  # the latter is rich's answer to the former
            discard_stdout()

    def say(self, text: str) -> None:
        """Print a message."""
        self._messages.print(text, markup=False, highlight=False)

    def _started(self, fields: dict[str, object]) -> None:
        from edge.camera.sinks.json_lines import JsonLines

        if self._json:
            try:
                JsonLines(sys.stdout).write({"type": "start", **fields})
            except BrokenPipeError:
                self._broken = True

    def _sink(self, title: str, notes: Callable[[], list[tuple[str, str]]], wait: bool) -> Sink:
        from edge.camera.background_sink import BackgroundSink
        from edge.camera.sinks.json_lines import JsonLines
        from edge.camera.sinks.terminal import LiveView, PlainLines

        if self._live:
            return LiveView(self._out, title, notes)
        self.say(title)
        if self._json:
            worker: JsonLines | PlainLines = JsonLines(sys.stdout)
        else:
            worker = PlainLines(lambda line: print(one_line(line), flush=True), notes)
        capacity, block = (_LAST_LINES, wait) if self._json else (1, False)
        self._lines = BackgroundSink("output", worker.process, capacity=capacity, block=block, notify=self.say)
        return self._lines

    def gone(self) -> bool:
        """Whether the output was closed by its reader."""
        return self._broken or (self._lines is not None and isinstance(self._lines.failure, BrokenPipeError))
