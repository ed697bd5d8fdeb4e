"""What reaches a terminal. Oracle: the bytes that a terminal gets; an escape sequence in any text is a planted fault."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge.cli import run
from edge.cli.console import SafeConsole, TerminalProgress
from engines.build_folder.step_record import StepRecord, write_record

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202eexe\r\x00\udcff"
SECONDS = 60


def printed(console_type=SafeConsole, **options):
    """What a console writes of a hostile name, however it is printed."""
    console = console_type(file=io.StringIO(), width=200, **options)
    progress = TerminalProgress(console)
    progress.say(HOSTILE)
    progress.table(("name", "n"), [(HOSTILE, "1")], left=("name",))
    table = Table("name")
    table.add_row(Text(HOSTILE))
    console.print(table)
    console.print(Text(HOSTILE, style="bold"))
    with progress.task(HOSTILE) as advance:
        advance(0.5)
    with Live(console=console, get_renderable=lambda: Text(HOSTILE), auto_refresh=False, transient=True):
        pass
    return console.file.getvalue()


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}], ids=["pipe", "terminal"])
def test_a_name_cannot_steer_the_terminal(options):
    text = printed(**options)
    assert not {"\x07", "\u202e", "\x00", "\udcff"} & set(text)
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert text.count(r"\x1b]0;owned") >= 4
    assert text.encode()
    assert ("\x1b[1m" in text) is bool(options), "rich's own codes are kept"


def test_the_check_notices_a_console_that_lets_it_through():
    assert "\x1b]0;owned" in printed(Console)


def test_an_error_about_a_hostile_name(capsys, tmp_path):
    assert run(["inspect", str(tmp_path / "\x1b[2J\x07\udcff\nnext.onnx")]) == 2
    error = capsys.readouterr().err
    assert r"\x1b[2J\x07\udcff" in error
    assert not {"\x1b", "\x07"} & set(error)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_letters_gets_escapes(tmp_path, encoding):
    """As in the C locale: text that the encoding lacks must not end a command."""
    write_record(tmp_path, {"木-π": StepRecord("0" * 64, {"木-π": "0" * 64})})
    done = subprocess.run(
        [sys.executable, "-c", "from edge.cli.main import main; main()", "inspect", str(tmp_path / "steps.json")],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u6728-\u03c0" in done.stdout
