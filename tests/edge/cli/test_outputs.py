"""Output options of the commands: a path that cannot be written is found before the work starts, and no input is replaced."""

import os
import stat

import pytest

from calib.errors import MissingError, UsageError
from edge.cli import run
from edge.cli.outputs import check_outputs

COMMANDS = {
    "gate --junit": ["gate", "BUILD", "--baseline", "base.json", "--junit"],
    "gate --json": ["gate", "BUILD", "--baseline", "base.json", "--json"],
    "gate --markdown": ["gate", "BUILD", "--baseline", "base.json", "--markdown"],
    "gate --update": ["gate", "BUILD", "--update", "--baseline"],
    "certify --out": ["certify", "g.onnx", "--out"],
    "certify --repair": ["certify", "g.onnx", "--repair"],
    "bench --json": ["bench", "BUILD", "--json"],
    "bench --latency": ["bench", "BUILD", "--against", "BUILD", "--latency"],
}
WORK = (
    "edge.gate.compare_builds.gate",
    "edge.gate.update.update_baseline",
    "edge.pipeline.certify_inputs.resolve",
    "edge.cli.bench.BenchOptions.open",
)


@pytest.fixture
def no_work(tmp_path, monkeypatch):
    """The folder of a build, a graph and a baseline, and commands whose work must not start."""
    for name in WORK:
        monkeypatch.setattr(name, lambda *_arguments, **_options: pytest.fail("the work has started"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BUILD").mkdir()
    for file in ("BUILD/manifest.json", "BUILD/steps.json", "g.onnx", "base.json"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "folder").mkdir()


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("folder", 2, "output cannot be written there"),
        ("BUILD/steps.json", 2, "would replace an input"),
        ("g.onnx/a.json", 4, "folder cannot be written"),
        ("x" * 300, 4, "folder cannot be written"),
    ],
    ids=["a folder", "a file of the build", "below a file", "a long name"],
)
def test_a_bad_path_is_refused_before_the_work_starts(no_work, tmp_path, command, path, code, words, capsys):
    if command.startswith("certify") and path.startswith("BUILD"):
        path = "g.onnx"
    before = contents(tmp_path)
    assert run([*COMMANDS[command], path]) == code
    assert words in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("path", ["base.json", "BUILD/../base.json", "link"])
def test_a_baseline_is_not_replaced_by_the_report_on_it(no_work, tmp_path, path, capsys):
    (tmp_path / "link").symlink_to("base.json")
    assert run([*COMMANDS["gate --json"], path]) == 2
    assert "would replace an input" in capsys.readouterr().err
    assert (tmp_path / "base.json").read_text() == "{}"


def test_two_results_in_one_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match="another output"):
        check_outputs(tmp_path / "a", None, tmp_path / "b", tmp_path / "a")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MissingError):
        check_outputs(tmp_path / "loop", inputs=[tmp_path / "loop"])


def test_good_paths_are_accepted_and_devices_any_number_of_times(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "old").write_text("of an earlier run")
    paths = [tmp_path / "pipe", tmp_path / "pipe", *["/dev/null"] * 2, tmp_path / "old", tmp_path / "new" / "a"]
    check_outputs(*map(type(tmp_path), paths), None, inputs=[tmp_path, None])
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert not (tmp_path / "new").exists()
