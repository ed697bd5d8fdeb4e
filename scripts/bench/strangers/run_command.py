"""Run a command with a time limit, and measure its time and peak memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.1
KEPT_LINES = 60


@dataclass(frozen=True)
class Finished:
    """A command that ended or was ended.

    Attributes:
        exit_code: None at the time limit; negative for a signal.
        lines: the last lines that it wrote, standard output and error together.
        peak_bytes: largest resident memory of one process of it.
    """

    exit_code: int | None
    lines: tuple[str, ...]
    seconds: float
    peak_bytes: int


def run_limited(command: list[str], seconds: float, cwd: Path | None = None) -> Finished:
    """Run a command and its children in a session of their own, which is killed at the limit."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=cwd)
        timed_out = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if not timed_out and time.monotonic() - start > seconds:
                timed_out = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)  # its own wait would find nothing any more
        output.seek(0)
        text = output.read().decode(errors="replace")
    lines = tuple(line.rstrip() for line in text.splitlines() if line.strip())[-KEPT_LINES:]
    code = None if timed_out else process.returncode
    return Finished(code, lines, round(time.monotonic() - start, 1), usage.ru_maxrss * 1024)
