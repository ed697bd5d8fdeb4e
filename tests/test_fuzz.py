"""scripts/fuzz.sh: what it takes for a failure, its cases, and a small part of them. Oracle: planted failures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edge.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
REFUSAL = b"error: not an image\n  where: a.png\n"


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "bench"))
        import fuzz
        import fuzz_cases
        import fuzz_files

        yield fuzz, fuzz_cases, fuzz_files


@pytest.mark.parametrize(
    ("code", "output", "after", "fault"),
    [
        (2, REFUSAL, {}, None),
        (0, b"fine\n", {"a": "2"}, None),
        (2, REFUSAL, {"gate.xml": "1"}, None),
        (70, b"internal error: KeyError\n", {}, "ended with 70"),
        (-9, b"", {}, "ended with -9"),
        (-14, b"", {}, "took more than 60 s"),
        (-24, b"", {}, "took more than 60 s"),
        (2, b"no\n", {}, "without an error and its place"),
        (2, b"error: not an image\n", {}, "without an error and its place"),
        (1, b"Traceback (most recent call last):\n", {}, "traceback"),
        (0, b"\x1b]0;owned\x07", {}, "control character"),
        (0, "a\u202eb".encode(), {}, "control character"),
        (2, REFUSAL, {"a": "2"}, "refused, but changed a"),
        (4, REFUSAL, {"b": "1"}, "refused, but changed b"),
    ],
)
def test_a_failure_is_noticed(fuzz, tmp_path, code, output, after, fault):
    found = fuzz[0].faults_of(fuzz[0].Ended(code, 1.0, 1000), output, {"a": "1"}, {"a": "1", **after}, tmp_path)
    assert found == [] if fault is None else any(fault in text for text in found), found


def test_code_that_ran_and_too_much_memory_are_noticed(fuzz, tmp_path):
    (tmp_path / fuzz[0].MARKER).touch()
    found = fuzz[0].faults_of(fuzz[0].Ended(0, 1.0, 3 << 30), b"", {}, {}, tmp_path)
    assert found == ["ran code of a file", "took 3.2 GB"]


def test_every_command_has_its_control_and_every_category_its_cases(fuzz):
    pairs = fuzz[1].applicable()
    assert {command for command, category in pairs if category == fuzz[1].GOOD} == set(COMMANDS)
    assert {category for _, category in pairs} == set(fuzz[1].CATEGORIES)
    assert len(pairs) > 90


def test_equal_seeds_break_files_equally_and_other_seeds_otherwise(fuzz):
    good = json.dumps({"a": {"b": [1, 2.5, "c"]}, "d": None}).encode()
    broken = [fuzz[2].broken_json(good, Random(seed)) for seed in (*range(40), *range(40))]
    assert broken[:40] == broken[40:]
    assert len(set(broken[:40])) > 20
    assert good not in broken


def test_a_forked_process_is_bounded(fuzz, tmp_path):
    """In the way that the cases are run: too much memory ends in an error, and the parent lives on."""
    ended = fuzz[0].forked(tmp_path, lambda: int(np.ones(3 << 28).sum()) and 0, tmp_path / "log")
    assert ended.code != 0
    assert b"Unable to allocate" in (tmp_path / "log").read_bytes()
    assert fuzz[0].forked(tmp_path, lambda: 3, tmp_path / "log").code == 3


@pytest.mark.slow
@pytest.mark.parametrize("category", ["good", "arguments"])
def test_a_small_part(category):
    """Every command on a good project, and on one to three senseless arguments."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'ufovit-edge[rtx]'", exc_type=ImportError)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench" / "fuzz.py"), "--cases", "107", "--category", category],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["all", str(len(COMMANDS)), "0"]
