"""Folders that parallel test processes share: made once, whole, and again after a failure."""

import subprocess
import sys
from pathlib import Path

import pytest
from run_once import make_once

SUPPORT = Path(__file__).parent / "support"


class Factory:
    """A process's base folder, as pytest hands it out: within a parallel run its parent is the shared one."""

    def __init__(self, parent):
        self.base = parent / "base"
        self.base.mkdir(exist_ok=True)

    def getbasetemp(self):
        return self.base


def test_the_second_time_nothing_is_made(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "file").write_text("whole")

    first, second = (make_once(Factory(tmp_path), "project", make) for _ in range(2))
    assert first == second == made[0]
    assert (first / "file").read_text() == "whole"
    assert len(made) == 1
    assert make_once(Factory(tmp_path), "other", make) != first


def test_what_failed_is_made_again(tmp_path):
    def fail(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        make_once(Factory(tmp_path), "project", fail)
    folder = make_once(Factory(tmp_path), "project", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_processes_at_once_make_one(tmp_path):
    """Four processes, each with a base folder of its own as xdist gives them, ask at the same time."""
    code = f"""
import os, sys, time
sys.path.insert(0, {str(SUPPORT)!r})
from pathlib import Path
from run_once import make_once
class Factory:
    def getbasetemp(self):
        return Path(sys.argv[1])
def make(folder):
    time.sleep(0.5)
    (folder / str(os.getpid())).touch()
print(*os.listdir(make_once(Factory(), "project", make)))
"""
    processes = []
    for worker in range(4):
        (base := tmp_path / f"popen-gw{worker}").mkdir()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(base)], stdout=subprocess.PIPE, text=True, env={"PYTEST_XDIST_WORKER": "gw"}
            )
        )
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1
    assert len(answers.pop().split()) == 1
