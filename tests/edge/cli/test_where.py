"""Every error says where: a file, an option or an argument; at least the command and what it was called on."""

import pytest

from calib.errors import DataError
from edge.cli import run


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["build", "ufovit_x", "int8", "--target", "cpu"], "MODEL"),
        (["build", "ufovit_t", "fp16", "--target", "cpu"], "PRECISION"),
        (["build", "ufovit_t", "int8", "--target", "toaster"], "--target"),
        (["build", "ufovit_t", "int8", "--target", "xavier-nx"], "--target"),
        (["build", "ufovit_t", "int8", "--target", "cpu", "--backend", "x"], "--backend"),
        (["build", "ufovit_t", "int8", "--target", "cpu", "--effort", "x"], "--effort"),
        (["build", "ufovit_t", "int8", "--target", "cpu", "--method", "x"], "--method"),
        (["build", "ufovit_t", "int8", "--target", "cpu", "--batch", "x"], "--batch"),
        (["build", "ufovit_t", "int8", "--target", "cpu", "--batch", "2,1,1"], "--batch"),
        (["build", "ufovit_t", "int8", "--target", "cpu", "--int8-floor", "2"], "--int8-floor"),
        (["build", "ufovit_s", "int8", "--target", "cpu"], "--checkpoint"),
        (["build", "ufovit_t"], "ufovit build"),
        (["build", "--bundle", "x.ufovit", "--target", "cpu"], "--target"),
        (["build", "ufovit_t", "int8", "--bundle", "x", "--target", "rtx"], "--bundle"),
        (["certify", "x.onnx", "--mean", "1"], "--mean"),
        (["gate", "x", "--baseline", "y", "--note", "z"], "--update"),
        (["inspect", "x", "--unsafe-no-manifest"], "--layers"),
        (["drift", "x", "--data", "a", "--unlabelled", "b"], "--unlabelled"),
        (["bench", "x", "--latency", "y"], "--against"),
        (["bake"], "ufovit"),
    ],
    ids=" ".join,
)
def test_the_option_or_argument_is_named(arguments, where, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("  where: "))
    assert line.startswith(f"  where: {where}")


def test_an_error_that_names_nothing_happened_in_this_command(capsys, monkeypatch):
    def fail(*_arguments, **_options):
        raise DataError("no times to summarize", found="0 times")

    monkeypatch.setattr("edge.inspect.describers.describe_file", fail)
    assert run(["inspect", "a\x1b.onnx"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: no times to summarize",
        r"  where: ufovit inspect a\x1b.onnx",
        "  found: 0 times",
    ]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(36, "File name too long", "x" * 300), 2, "  where: xxx"),
        (OSError(40, "Too many levels of symbolic links", "loop"), 2, "  where: loop"),
        (RuntimeError("Symlink loop from '/loop'"), 2, "  found: Symlink loop from '/loop'"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2, "  where: a/b"),
        (MemoryError("Unable to allocate 8 TiB"), 4, "  found: Unable to allocate 8 TiB"),
        (RuntimeError("a fault"), 70, "internal error: RuntimeError: a fault"),
        (OSError(5, "Input/output error"), 70, "internal error: OSError"),
    ],
)
def test_a_path_that_cannot_be_opened_and_too_little_memory(capsys, monkeypatch, error, code, says):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("edge.inspect.describers.describe_file", fail)
    assert run(["inspect", "a"]) == code
    assert says in capsys.readouterr().err
