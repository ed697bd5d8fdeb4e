"""A folder is marked from the first change of a build to its end, and never by a build that changes nothing."""

import pytest

from calib.errors import ArtifactError, InputError
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Silent
from engines.build_folder.folder import BuildFolder
from engines.build_folder.under_construction import MARK

WORDS = "under construction"


def build(folder, value=0, *, fail=False, before_change=lambda _step: None):
    """Two steps; returns those that ran, each with whether a reader was refused during it."""
    refused = {}

    def step(name):
        def work(out, _advance):
            try:
                BuildFolder(folder)
                refused[name] = False
            except ArtifactError as error:
                refused[name] = WORDS in str(error)
            (out / f"{name}.out").write_text(str(value))
            if fail and name == "second":
                raise InputError("step failed")

        return Step(name, {"value": value}, (f"{name}.out",), work)

    opened = Workspace.open(folder, ("first.out", "second.out"), force=False, on_wait=pytest.fail, before_change=before_change)
    with opened as workspace:
        for name in ("first", "second"):
            workspace.run(step(name), Silent())
    return refused


def test_readers_are_refused_from_the_first_exchange_of_files_to_the_last(tmp_path):
    assert build(tmp_path) == {"first": False, "second": True}
    assert build(tmp_path, 1) == {"first": False, "second": True}, "until then the folder is the old build, complete"
    assert not (tmp_path / MARK).exists()
    assert BuildFolder(tmp_path).steps.keys() == {"first", "second"}


def test_a_build_that_changes_nothing_marks_nothing(tmp_path):
    build(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())}
    assert build(tmp_path) == {}
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())} == before


def test_a_refusal_before_the_first_change_marks_nothing(tmp_path):
    build(tmp_path)

    def refuse(_step):
        raise InputError("bad input")

    with pytest.raises(InputError, match="bad input"):
        build(tmp_path, 1, before_change=refuse)
    assert len(BuildFolder(tmp_path).steps) == 2


def test_a_step_that_fails_leaves_a_folder_that_is_refused_until_it_is_built(tmp_path):
    with pytest.raises(InputError, match="step failed"):
        build(tmp_path, fail=True)
    with pytest.raises(ArtifactError, match=WORDS):
        BuildFolder(tmp_path)
    assert build(tmp_path) == {"second": True}, "the first step is reused"
    assert len(BuildFolder(tmp_path).steps) == 2


def test_a_build_killed_after_its_last_step_is_finished_by_repeating_it(tmp_path):
    build(tmp_path)
    (tmp_path / MARK).touch()
    assert build(tmp_path) == {}, "nothing is left to do"
    assert not (tmp_path / MARK).exists()
