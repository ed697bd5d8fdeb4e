"""What GitHub reads: workflows, the gate action, issue forms; and the hooks of pre-commit. All of it exists, parses and runs.

Shell steps run with the runner's own options where nothing has to be installed or built. Each checker has a negative control.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from documented_commands import options_of, wrong_in_command
from gate_builds import Planted, edit, lose_answers, plant, set_field

from calib.artifact import read_artifact
from edge.cli import run
from edge.gate.compare_builds import GateReport

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
ACCURACY, CHECKS = (GITHUB / "workflows" / f"{name}.yml" for name in ("accuracy", "checks"))
ACTION = GITHUB / "actions" / "gate" / "action.yml"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
HOOKS = ROOT / ".pre-commit-config.yaml"
GOLDEN = "tests/golden/ufovit_t-int8-rtx.json"
FORM_INPUTS = ("markdown", "textarea", "input", "dropdown", "checkboxes")


def read(text):
    """YAML in which the key `on` stays text; YAML 1.1 takes it for true."""
    return yaml.load(text, Loader=yaml.BaseLoader)


def steps_of(text):
    """The steps of all jobs of a workflow, or of a composite action."""
    content = read(text)
    return [step for part in [*content.get("jobs", {}).values(), content.get("runs", {})] for step in part.get("steps", ())]


def commands(text):
    """The command lines of a workflow's `run:` entries, `$NAME` replaced by what its `env:` says."""
    environment = read(text).get("env", {})
    lines = [step["run"] for step in steps_of(text) if "run" in step]
    return [shlex.split(re.sub(r"\$([A-Z]+)\b", lambda name: environment.get(name[1], name[0]), line)) for line in lines]


def wrong_in_workflow(text):
    """What does not exist in a workflow: scripts, options, files, actions and their inputs, patterns of digests."""
    wrong = []
    for words in commands(text):
        program, *rest = words
        if program == "scripts/test.sh":
            wrong += [] if (ROOT / program).is_file() else [program]
        else:
            wrong += wrong_in_command(words)
        wrong += [word for word in rest if word.startswith("tests/") and not (ROOT / word).is_file()]
    for step in steps_of(text):
        used = step.get("uses", "")
        if used.startswith("./"):
            wrong += wrong_in_use(ROOT / used / "action.yml", step.get("with", {}))
        elif used and not re.fullmatch(r"actions/[\w-]+@v\d+", used):
            wrong.append(used)
    for pattern in re.findall(r"'([^']+)'", " ".join(re.findall(r"hashFiles\(([^)]*)\)", text))):
        wrong += [] if any(ROOT.glob(pattern)) else [pattern]
    return wrong


def wrong_in_use(action, given):
    """What is wrong with the inputs that a step gives to an action of this repository."""
    if not action.is_file():
        return [str(action.relative_to(ROOT))]
    inputs = read(action.read_text())["inputs"]
    required = {name for name, about in inputs.items() if about.get("required") == "true"}
    return [f"no input {name}" for name in given.keys() - inputs] + [
        f"input {name} is missing" for name in required - given.keys()
    ]


@pytest.mark.parametrize("path", [ACCURACY, CHECKS], ids=lambda p: p.stem)
def test_what_a_workflow_runs_exists(path):
    text = path.read_text()
    assert wrong_in_workflow(text) == []
    assert read(text)["permissions"] == {"contents": "read"}
    assert commands(text), "a workflow that runs nothing"


def test_the_accuracy_workflow_builds_and_gates_the_same_folder():
    text = ACCURACY.read_text()
    (built,) = commands(text)
    assert built[:3] == ["scripts/build_engine.sh", "ufovit_t", "int8"]
    environment = read(text)["env"]
    assert environment["BASELINE"] == GOLDEN
    assert environment["BUILD"] == built[built.index("--out") + 1]
    (gate,) = (step for step in steps_of(text) if step.get("uses") == "./.github/actions/gate")
    assert gate["with"]["build"] == "${{ env.BUILD }}"
    assert gate["with"]["baseline"] == "${{ env.BASELINE }}"
    (uploaded,) = (step["with"]["path"].split() for step in steps_of(text) if "upload-artifact" in step.get("uses", ""))
    assert {gate["with"][name] for name in ("junit", "markdown", "json")} < set(uploaded), "what is written is uploaded"


def test_the_checks_run_on_the_oldest_and_a_newer_python():
    (job,) = read(CHECKS.read_text())["jobs"].values()
    pythons = job["strategy"]["matrix"]["python"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert pythons == [oldest, "3.13"]
    (command,) = commands(CHECKS.read_text())
    assert command[0] == "scripts/test.sh"
    (uploaded,) = (step["with"]["path"] for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert command[command.index("--junitxml") + 1] == uploaded


@pytest.mark.parametrize(
    ("path", "old", "new", "found"),
    [
        (ACCURACY, "--target", "--targets", "no option --targets"),
        (ACCURACY, "scripts/build_engine.sh", "scripts/build.sh", "scripts/build.sh is not an executable script"),
        (ACCURACY, "          baseline:", "          base:", "no input base"),
        (ACCURACY, "          baseline:", "          base:", "input baseline is missing"),
        (ACCURACY, "./.github/actions/gate", "./.github/actions/gates", ".github/actions/gates/action.yml"),
        (ACCURACY, "'pyproject.toml'", "'setup.cfg'", "setup.cfg"),
        (ACCURACY, "checkout@v5", "checkout@main", "actions/checkout@main"),
        (CHECKS, "scripts/test.sh", "scripts/tests.sh", "scripts/tests.sh is not an executable script"),
    ],
)
def test_what_does_not_exist_is_found(path, old, new, found):
    assert found in wrong_in_workflow(path.read_text().replace(old, new))


@pytest.fixture
def toolkit(tmp_path):
    """A checkout of the toolkit for the action: its own files, an installation that is in place, the command itself."""
    folder = tmp_path / "toolkit"
    for name, text in {
        "scripts/install.sh": '#!/usr/bin/env bash\necho "$*" >"$GITHUB_ACTION_PATH/../../../installed"\n',
        ".venv/bin/ufovit": f'#!/usr/bin/env bash\nexec {sys.executable} -c "from edge.cli.main import main; main()" "$@"\n',
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    (folder / ".github" / "actions" / "gate").mkdir(parents=True)
    return folder


def run_action(toolkit, **given):
    """Run the steps of the gate action as a runner does; (exit code, outputs, summary)."""
    action = read(ACTION.read_text())
    inputs = {name: given.get(name, about.get("default")) for name, about in action["inputs"].items()}
    assert None not in inputs.values(), "a required input was not given"
    files = {name: toolkit / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "an input inside a script would be executed"
        values = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], text)
            for name, text in step.get("env", {}).items()
        }
        place = {"PYTHONPATH": str(ROOT), "GITHUB_ACTION_PATH": str(toolkit / ".github" / "actions" / "gate")}
        env = os.environ | place | {name: str(path) for name, path in files.items()} | values
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(shell, check=False, capture_output=True, text=True, timeout=120, cwd=toolkit, env=env)
        if done.returncode:
            break
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return done.returncode, outputs, files["GITHUB_STEP_SUMMARY"].read_text()


@pytest.fixture
def base(tmp_path):
    folder, baseline = plant(tmp_path / "good"), tmp_path / "baselines" / "good.json"
    assert run(["gate", str(folder), "--baseline", str(baseline), "--update", "--reviewed-by", "A. Reader"]) == 0
    edit(baseline, set_field("tolerances", "sqnr", "tolerance", to=1e6))  # a planted answer costs more SQNR than a real one
    return baseline


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "code", "verdict"),
    [
        (Planted(), 0, "pass"),
        (Planted(engine=b"engine" * 60_000), 1, "fail"),
        (Planted(logits=lose_answers(6), budget=0.5), 3, "inconclusive"),
    ],
    ids=["pass", "fail", "inconclusive"],
)
def test_the_action_passes_the_verdict_on(base, toolkit, tmp_path, planted, code, verdict):
    build = plant(tmp_path / "a build", planted)
    (toolkit / "build").mkdir()
    (toolkit / "build" / "gate.md").write_text("of an earlier run")
    assert run_action(toolkit, build=str(build), baseline=str(base))[:2] == (code, {"exit-code": str(code)})
    assert (toolkit / "installed").read_text() == "build rtx\n"
    assert read_artifact(toolkit / "build" / "gate.json", GateReport, remake="").verdict == verdict
    assert ET.fromstring((toolkit / "build" / "gate.xml").read_bytes()).get("tests") != "0"
    summary = (toolkit / "GITHUB_STEP_SUMMARY").read_text()
    assert summary == (toolkit / "build" / "gate.md").read_text()
    assert f"gate: {verdict}" in summary


@pytest.mark.slow
def test_the_action_with_options_and_with_bad_input(base, toolkit, tmp_path):
    build = plant(tmp_path / "build")
    given = {"build": str(build), "baseline": str(base)}
    code, outputs, summary = run_action(toolkit, **given, options="--latency none.json", json="out/of the way.json")
    assert (code, outputs) == (2, {"exit-code": "2"})
    assert "none.json" in summary, "a refusal reaches the summary"
    assert (toolkit / "out" / "of the way.json").is_file()
    (toolkit / "build" / "gate.md").write_text("of an earlier run")
    assert run_action(toolkit, **given, options="--no-such-option") == (2, {"exit-code": "2"}, ""), (
        "no report of an earlier run"
    )
    assert run_action(toolkit, **(given | {"build": "$(touch injected)"}))[0] == 2
    assert not (toolkit / "injected").exists(), "an input is never executed"


def test_the_action_states_every_file_that_the_command_writes():
    inputs = read(ACTION.read_text())["inputs"]
    assert {f"--{name}" for name in inputs if name not in ("build", "baseline", "options")} < options_of("gate")
    assert {name for name, about in inputs.items() if about.get("required") == "true"} == {"build", "baseline"}


def wrong_in_form(text):
    """What GitHub would refuse in an issue form, and commands in it that do not exist."""
    form = read(text)
    wrong = [f"no {key}" for key in ("name", "description", "body") if not form.get(key)]
    names = [part["id"] for part in form.get("body", ()) if "id" in part]
    wrong += ["two parts have one id"] if len(names) != len(set(names)) else []
    for part in form.get("body", ()):
        kind, about = part.get("type"), part.get("attributes", {})
        wrong += [f"no such part: {kind}"] if kind not in FORM_INPUTS else []
        wrong += (
            ["a part without an id or a label"] if kind != "markdown" and not (part.get("id") and about.get("label")) else []
        )
        wrong += ["a choice without options"] if kind == "dropdown" and len(about.get("options", ())) < 2 else []
    named = re.findall(r"`((?:ufovit|scripts/)[^`]*)`", text)
    return wrong + [error for line in named for error in wrong_in_command(shlex.split(line))]


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_issue_forms_are_what_github_reads(path):
    assert wrong_in_form(path.read_text()) == []


def test_there_are_forms_for_a_bug_a_wrong_verdict_and_a_device():
    assert {path.stem for path in FORMS} == {"bug", "wrong_verdict", "device_report"}
    assert read((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text()) == {"blank_issues_enabled": "false"}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("type: textarea", "type: text", "no such part: text"),
        ("id: expected", "id: command", "two parts have one id"),
        ("ufovit doctor", "ufovit doctors", "no command doctors"),
        ("description: A", "about: A", "no description"),
    ],
)
def test_a_wrong_form_is_found(old, new, found):
    assert found in wrong_in_form((GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text().replace(old, new))


def hooks():
    (repository,) = read(HOOKS.read_text())["repos"]
    assert repository["repo"] == "local"
    return {hook["id"]: hook for hook in repository["hooks"]}


def test_hooks_are_the_programs_of_the_check_script():
    """The same environment and thereby the same versions: every program of a hook stands in scripts/check.sh."""
    check = (ROOT / "scripts" / "check.sh").read_text()
    assert set(hooks()) == {"ruff-check", "ruff-format", "mypy"}
    for hook in hooks().values():
        program = re.match(r"\.venv/bin/(?:ruff \w+|mypy)", hook["entry"])[0]
        assert program in check
        assert hook["language"] == "system"


@pytest.mark.parametrize("hook", ["ruff-check", "ruff-format"])
def test_a_hook_passes_good_files_and_stops_bad_ones(tmp_path, hook):
    """Run as pre-commit runs it: the entry's words and the names of the changed files, from the root."""
    words = shlex.split(hooks()[hook]["entry"])
    program = Path(sys.executable).parent / Path(words[0]).name
    for text, code in (('"""A module."""\n\nX = 1\n', 0), ("import os\nX=1\n", 1)):
        file = tmp_path / "module.py"
        file.write_text(text)
        assert subprocess.run([program, *words[1:], file], check=False, capture_output=True, cwd=ROOT).returncode == code


def test_pre_commit_accepts_its_file():
    program = Path(sys.executable).parent / "pre-commit"
    done = subprocess.run([program, "validate-config", HOOKS], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
