"""The scripts: valid shell, arguments and exit codes passed through, an installation that is in place left alone."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
PROGRAMS = [p for p in sorted((ROOT / "scripts").rglob("*.py")) if "ArgumentParser(description" in p.read_text()]
CI = ROOT / ".ci" / "run"
SECONDS = 120


def sh(*command, cwd=ROOT, **environment):
    """A finished command."""
    env = {**os.environ, **environment}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS, cwd=cwd, env=env)


@pytest.mark.parametrize("script", [*SCRIPTS, CI], ids=lambda p: p.name)
def test_script_is_valid_strict_and_executable(script):
    assert sh("bash", "-n", str(script)).returncode == 0
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n#"), "a shebang, and a comment that says what it does"
    assert "set -euo pipefail" in text
    assert script.stat().st_mode & stat.S_IXUSR
    if shutil.which("shellcheck"):
        found = sh("shellcheck", str(script))
        assert found.returncode == 0, found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_program_starts(program):
    """Every import is there: mypy does not read these files, and a name that moved shows when they are run only."""
    done = sh(sys.executable, str(program), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_program_without_its_import_is_noticed(tmp_path):
    moved = tmp_path / "moved.py"
    moved.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom engines.layer_records import read_layers\n")
    assert sh(sys.executable, str(moved), "--help").returncode != 0


def test_invalid_shell_is_noticed(tmp_path):
    broken = tmp_path / "broken.sh"
    broken.write_text("#!/usr/bin/env bash\nif true; then\n")
    assert sh("bash", "-n", str(broken)).returncode != 0


def test_ci_runs_the_test_script_and_nothing_else():
    commands = [line for line in CI.read_text().splitlines() if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec bash scripts/test.sh"]


def pins(text):
    """{environment marker: {package: version}} of a list of constraints, "" for no marker."""
    pinned = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        requirement, _, marker = line.partition(";")
        name, _, version = requirement.strip().partition("==")
        assert version, f"{line} pins no version"
        pinned.setdefault(marker.strip(), {})[name.lower().replace("_", "-")] = version
    return pinned


def test_every_python_has_a_version_of_every_package():
    pinned = pins((ROOT / "scripts" / "constraints.txt").read_text())
    newer, oldest = pinned['python_version >= "3.11"'], pinned['python_version < "3.11"']
    assert newer.keys() == oldest.keys() - {"tomli"}, "which Python 3.11 has in its own library"
    wanted = re.findall(r'^ +"([a-z][\w-]*)[><=]=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(wanted) > 15
    assert {*wanted} - {"setuptools"} <= {*oldest, *pinned[""]}, "what is installed from a list is pinned"
    assert pins('a_B==1; python_version < "3.11"\n# c==2\nd==3')[""] == {"d": "3"}


@pytest.fixture
def checkout(tmp_path):
    """The scripts in a folder of their own, with an environment whose programs only tell how they were called.

    `python` answers every question with success, so that what pip would install counts as installed.
    """
    for folder in ("scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for script in (ROOT / "scripts").iterdir():
        if script.is_file():
            shutil.copy2(script, tmp_path / "scripts" / script.name)
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    fake(tmp_path / ".venv/bin/python", 'echo "python $*" >>calls')
    fake(tmp_path / ".venv/bin/ufovit", 'for a in "$@"; do echo "<$a>"; done; exit "${FAKE_EXIT:-0}"')
    return tmp_path


def fake(path, body):
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def pip_calls(checkout):
    calls = checkout / "calls"
    return [line for line in calls.read_text().splitlines() if " install " in line] if calls.exists() else []


def test_install_asks_pip_for_the_extras_once(checkout):
    first = sh("scripts/install.sh", "build", "rtx", cwd=checkout)
    assert first.returncode == 0, first.stderr
    (call,) = pip_calls(checkout)
    assert call.endswith("-c scripts/constraints.txt -e .[build,rtx]")
    again = sh("scripts/install.sh", "rtx", "build", cwd=checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", ""), "the same extras in any order: nothing to do"
    assert len(pip_calls(checkout)) == 1
    assert sh("scripts/install.sh", "build", "rtx", "dev", cwd=checkout).returncode == 0
    assert len(pip_calls(checkout)) == 2, "another extra"


@pytest.mark.parametrize("file", ["pyproject.toml", "scripts/constraints.txt"])
def test_install_runs_again_when_what_it_installs_changes(checkout, file):
    sh("scripts/install.sh", "rtx", cwd=checkout)
    with (checkout / file).open("a") as stream:
        stream.write("\n# changed\n")
    sh("scripts/install.sh", "rtx", cwd=checkout)
    assert len(pip_calls(checkout)) == 2


def test_a_failed_installation_is_not_taken_for_done(checkout):
    fake(checkout / ".venv/bin/python", 'echo "python $*" >>calls; [[ "$*" != *" install "* ]]')
    for attempt in (1, 2):
        failed = sh("scripts/install.sh", "rtx", cwd=checkout)
        assert failed.returncode == 4
        assert "pip failed" in failed.stderr
        assert len(pip_calls(checkout)) == attempt


@pytest.mark.parametrize(
    ("python", "says"), [("no-such-python", "not found"), ("./old-python", "too old")], ids=["missing", "old"]
)
def test_install_refuses_an_interpreter_that_will_not_do(checkout, python, says):
    fake(checkout / "old-python", '[[ "$1" == --version ]] && echo "Python 3.8.1" || exit 1')
    refused = sh("scripts/install.sh", cwd=checkout, PYTHON=python)
    assert refused.returncode == 4
    assert says in refused.stderr
    assert "PYTHON" in refused.stderr
    assert pip_calls(checkout) == []


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_build_engine_passes_arguments_and_exit_codes_through(checkout, code):
    words = ("ufovit_t", "int8", "--out", "a folder", "--data", "")
    done = sh("scripts/build_engine.sh", *words, cwd=checkout, FAKE_EXIT=str(code))
    assert done.returncode == code
    assert done.stdout.splitlines() == ["<build>", *(f"<{w}>" for w in words)]


@pytest.mark.parametrize(
    ("given", "selected"),
    [
        ((), []),
        (("-k", "gate"), ["-k", "gate"]),
        (("--fast",), ["-m", "not slow or smoke"]),
        (("--fast", "-x"), ["-m", "not slow or smoke", "-x"]),
    ],
)
def test_test_checks_before_it_tests(checkout, given, selected):
    for program in ("ruff", "mypy"):
        fake(checkout / ".venv/bin" / program, f'echo "{program} $*" >>calls')
    fake(checkout / ".venv/bin/pytest", 'echo pytest >>calls; printf "%s\\n" "$@"; exit 5')
    done = sh("scripts/test.sh", *given, cwd=checkout)
    assert done.returncode == 5, "the exit code of the tests"
    workers, count, *options = done.stdout.splitlines()
    assert (workers, int(count)) == ("-n", len(os.sched_getaffinity(0)) + 1)
    assert options == ["--dist", "worksteal", "--durations", "15", *selected]
    programs = [line.split()[0] for line in (checkout / "calls").read_text().splitlines() if not line.startswith("python")]
    assert programs == ["ruff", "ruff", "mypy", "pytest"]


@pytest.mark.parametrize("program", ["ruff", "mypy"])
def test_nothing_is_tested_where_a_check_fails(checkout, program):
    for name in ("ruff", "mypy", "pytest"):
        fake(checkout / ".venv/bin" / name, f'echo "{name}" >>calls; exit {int(name == program)}')
    assert sh("scripts/test.sh", cwd=checkout).returncode == 1
    assert "pytest" not in (checkout / "calls").read_text()


def test_build_engine_works_from_any_folder(checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = sh(str(checkout / "scripts/build_engine.sh"), "ufovit_t", "int8", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["<build>", "<ufovit_t>", "<int8>"]
    assert list(elsewhere.iterdir()) == []


def installed(*extras):
    stamp = ROOT / ".venv" / ".installed"
    return stamp.exists() and {line.split()[1] for line in stamp.read_text().splitlines()} >= set(extras)


@pytest.mark.slow
def test_this_checkout_is_installed_and_stays_so():
    if not installed("build", "rtx"):
        pytest.skip("this environment was not made by scripts/install.sh")
    stamp = ROOT / ".venv" / ".installed"
    before = stamp.stat().st_mtime_ns
    again = sh("scripts/install.sh", "build", "rtx")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", ""), "not a word: nothing was installed"
    assert stamp.stat().st_mtime_ns == before
    refused = sh("scripts/build_engine.sh", "ufovit_x", "int8")
    assert refused.returncode == 2
    assert "unknown model 'ufovit_x'" in refused.stderr
