"""`ufovit gate` as a user and CI run it: exit codes, files, refusals; the shipped baseline; the quick script."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from gate_builds import Planted, edit, lose_answers, plant, set_field
from tiny_project import command

from calib.artifact import read_artifact
from edge.assets import TEST_IMAGES
from edge.cli import run
from edge.gate.baseline import read_baseline
from edge.gate.compare_builds import GateReport
from edge.images.labelled_images import open_images
from edge.tasks.classification.logits import unpack_answers

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "ufovit_t-int8-rtx.json"


@pytest.fixture
def base(tmp_path):
    folder, baseline = plant(tmp_path / "good"), tmp_path / "baselines" / "good.json"
    assert (
        run(["gate", str(folder), "--baseline", str(baseline), "--update", "--reviewed-by", "A. Reader", "--note", "why"]) == 0
    )
    return folder, baseline


def outputs(folder):
    return {name: folder / f"gate.{name}" for name in ("junit", "markdown", "json")}


def gated(folder, baseline, *more):
    return run(["gate", str(folder), "--baseline", str(baseline), *map(str, more)])


def as_options(files):
    return [word for name, path in files.items() for word in (f"--{name}", path)]


@pytest.mark.parametrize(
    ("planted", "code", "verdict"),
    [
        (Planted(), 0, "pass"),
        (Planted(engine=b"engine" * 60_000), 1, "fail"),
        (Planted(logits=lose_answers(6), budget=0.5), 3, "inconclusive"),
    ],
)
def test_exit_codes_and_files_agree(base, tmp_path, capsys, planted, code, verdict):
    edit(base[1], set_field("tolerances", "sqnr", "tolerance", to=1e6))  # a planted answer costs more SQNR than a real one
    files = outputs(tmp_path)
    assert gated(plant(tmp_path / "now", planted), base[1], *as_options(files)) == code
    report = read_artifact(files["json"], GateReport, remake="")
    assert report.verdict == verdict
    assert f"verdict  {verdict.upper()}" in capsys.readouterr().out
    assert f"gate: {verdict}" in files["markdown"].read_text()
    assert "A. Reader" in files["markdown"].read_text()
    suites = ET.fromstring(files["junit"].read_bytes())
    assert (int(suites.get("failures")) > 0, int(suites.get("errors")) > 0) == (code == 1, code == 3)


def test_a_refusal_reaches_every_file(base, tmp_path, capsys):
    edit(base[1], set_field("measured", "answers", "figures", "top1", to=0.1))
    files = outputs(tmp_path)
    assert gated(base[0], base[1], *as_options(files)) == 2
    assert "figures were edited" in capsys.readouterr().err
    assert "figures were edited" in files["markdown"].read_text()
    assert json.loads(files["json"].read_text())["verdict"] == "refused"
    (case,) = ET.fromstring(files["junit"].read_bytes()).iter("testcase")
    assert "figures were edited" in case.find("error").get("message")


def test_no_baseline_names_the_command_that_makes_one(tmp_path, capsys):
    assert gated(plant(tmp_path / "b"), tmp_path / "none.json") == 2
    assert "--update" in capsys.readouterr().err


def test_a_build_that_did_not_pass_is_a_baseline_only_when_forced_and_stamped(base, tmp_path, capsys):
    bad = plant(tmp_path / "bad", Planted(logits=lose_answers(60), budget=0.5))
    before = base[1].read_bytes()
    assert gated(bad, base[1], "--update") == 1
    assert "--force" in capsys.readouterr().err
    assert base[1].read_bytes() == before
    assert gated(bad, base[1], "--update", "--force") == 0
    assert "verdict: pass -> fail" in capsys.readouterr().out
    assert gated(bad, base[1]) == 1, "its own verdict fails it still"
    assert "FORCED" in capsys.readouterr().out
    assert [path.name for path in base[1].parent.iterdir()] == [base[1].name], "nothing half-written"


@pytest.mark.parametrize(
    "options", [("--force",), ("--note", "x"), ("--reviewed-by", "x"), ("--update", "--junit", "x.xml"), ("--no-such",)]
)
def test_options_that_would_be_ignored_are_refused(base, options):
    before = base[1].read_bytes()
    assert gated(*base, *options) == 2
    assert base[1].read_bytes() == before


def test_a_latency_file(base, tmp_path, capsys):
    timed = tmp_path / "latency.json"
    fields = {"schema_version": 1, "ratio": 0.5, "low": 0.49, "high": 0.51, "runs": 50}
    timed.write_text(json.dumps(fields))
    assert gated(*base, "--update", "--latency", timed) == 0
    assert gated(*base, "--latency", timed) == 0
    assert gated(*base) == 1, "what the baseline holds must be measured"
    timed.write_text(json.dumps(fields | {"ratio": 0.9, "low": 0.8, "high": 1.0}))
    assert gated(*base, "--latency", timed) == 1
    timed.write_text(json.dumps(fields | {"low": 0.7}))
    assert gated(*base, "--latency", timed) == 2
    assert "invalid latency ratio" in capsys.readouterr().err


@pytest.mark.slow
def test_real_builds_of_the_tiny_network(project, tmp_path, capsys):
    """Built, made the baseline, rebuilt: on half of its images it passes, on other images it is refused."""
    baseline = tmp_path / "tiny.json"
    assert gated(project / "out", baseline, "--update") == 0
    assert gated(project / "out", baseline) == 0
    assert run(command(project, eval_images=40, max_drop=60)) == 0
    assert gated(project / "out", baseline) == 0
    assert "40 of the baseline's 80 images" in capsys.readouterr().out
    assert run(command(project, data=project / "calibration", calib_data=project / "test", max_drop=60)) == 0
    assert gated(project / "out", baseline) == 2
    assert "not of this build: other data" in capsys.readouterr().err


def test_the_shipped_baseline_is_the_shipped_networks():
    baseline = read_baseline(GOLDEN)
    identity, measured = baseline.identity, baseline.measured.answers
    assert (identity.model, identity.precision, identity.target, identity.images) == ("ufovit_t", "int8", "rtx", 10_000)
    assert baseline.origin.verdict == "pass"
    reference, engine = (
        unpack_answers(measured.answers[side], identity.meaning["classes"], identity.images) for side in ("reference", "engine")
    )
    assert (reference == engine).mean() == measured.figures["agreement"]
    images = open_images(TEST_IMAGES, tuple(map(str, range(10))))
    assert images.sha256 == identity.data_sha256
    assert (engine == images.labels).mean() == measured.figures["top1"]
