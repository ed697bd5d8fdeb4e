"""Numbers of options. Oracle: every option of a numeric type is found and tried with numbers beyond any machine."""

import re

import pytest
from rich.console import Console

from edge.cli import run
from edge.cli.main import COMMANDS, app

HUGE = ("1" + 30 * "0", "9" * 5000, "-1", "-" + 30 * "9")
NO_NUMBERS = ("nan", "inf", "-inf", "1e400")
POSITIONAL = {
    "build": ("ufovit_t", "int8"), "camera": ("b", "--source", "synthetic://"), "bench": ("b",), "calibrate": ("g.onnx",),
    "certify": ("g.onnx",), "bundle": ("b",), "drift": ("b",), "checkpoint": ("c.pth",),
}  # fmt: skip
WITH = {"--batch": (), "--seed": ("--random-weights",)}


def numeric_options():
    """(command, option, type) of every option that takes a number or numbers."""
    for command in COMMANDS:
        for argument in app[command].assemble_argument_collection(default_parameter=app.default_parameter):
            kind = str(argument.hint)
            if argument.name.startswith("--") and (re.search(r"\b(int|float)\b", kind) or argument.name == "--batch"):
                yield command, argument.name, "float" if "float" in kind else "int"


OPTIONS = sorted(numeric_options())


def test_the_options_are_found():
    found = {option for _, option, _ in OPTIONS}
    assert {
        "--threads",
        "--random",
        "--count",
        "--frames",
        "--max-drop",
        "--batch",
        "--top",
        "--duration",
        "--image-size",
    } <= found
    assert len(OPTIONS) > 25


@pytest.mark.parametrize(("command", "option", "kind"), OPTIONS, ids=lambda value: value)
def test_a_number_beyond_the_bounds_is_refused_with_the_bounds(command, option, kind, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in HUGE + (NO_NUMBERS if kind == "float" else ()):
        assert run([command, *POSITIONAL[command], *WITH.get(option, ()), f"{option}={value}"]) == 2, (option, value)
        error = capsys.readouterr().err
        assert option in error, error
        assert "allowed" in error, error
        assert "not a build folder" not in error, "refused before anything is opened"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "option"), [(command, option) for command, option, _ in OPTIONS], ids=lambda value: value)
def test_the_help_names_the_bounds(command, option, capsys, monkeypatch):
    monkeypatch.setattr(app, "_console", Console(width=400))
    assert run([command, "--help"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if re.search(rf"{option}\b", line))
    assert re.search(r"\d to [\d,]+\b", line), line
