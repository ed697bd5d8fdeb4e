"""A build folder: what is reused, what runs again, and what is left after a failure, a kill, or two builds at once."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys

import pytest

from calib.errors import InputError, MissingError, UsageError, VerdictError
from calib.files import write_bytes
from edge.pipeline import workspace as module
from edge.pipeline.staging import STAGING, settle
from edge.pipeline.workspace import RECORD, Step, Workspace, locked
from edge.progress import Silent
from engines.build_folder.under_construction import MARK

FLOW = ("export", "calibrate", "engine", "drift")  # alphabetical order would be another one
SIGNATURE = "signature.json"
ARTIFACTS = (*(f"{name}.out" for name in FLOW), "x.out", "a.out", "b.out", SIGNATURE)
TIMEOUT = 60
FAILED = InputError("step failed")
spawn = multiprocessing.get_context("spawn")


def no_wait(text):
    raise AssertionError(f"nobody else holds the folder: {text}")


def flow(folder, *, reads=None, force=False, fail_at=None, error=FAILED, steps=FLOW, log=None):
    """Run steps that each write `<name>.out` from what they read; returns the names of those that ran."""
    with Workspace.open(folder, ARTIFACTS, force=force, on_wait=no_wait) as workspace:
        for name in steps:
            value = (reads or {}).get(name, 0)

            def run(out, _advance, name=name, value=value):
                if log is not None:
                    log.append((name, sorted(p.name for p in folder.glob("*.out"))))
                if name == fail_at:
                    (out / f"{name}.out").write_text("half of it")
                    raise error
                (out / f"{name}.out").write_text(f"{name} of {value}")

            workspace.run(Step(name, {"value": value}, (f"{name}.out",), run), Silent())
        assert sorted([*workspace.ran, *workspace.reused]) == sorted(steps)
        return workspace.ran


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def outputs(folder):
    return sorted(p.stem for p in folder.glob("*.out"))


def record(folder):
    return json.loads((folder / RECORD).read_text())["steps"]


def test_second_run_reuses_every_step(tmp_path):
    assert flow(tmp_path) == list(FLOW)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.out")}
    assert flow(tmp_path) == []
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.out")} == before
    assert flow(tmp_path, force=True) == list(FLOW)


def test_a_changed_input_runs_its_step_and_all_later_ones(tmp_path):
    flow(tmp_path)
    assert flow(tmp_path, reads={"calibrate": 1}) == ["calibrate", "engine", "drift"]
    assert (tmp_path / "calibrate.out").read_text() == "calibrate of 1"
    assert flow(tmp_path, reads={"calibrate": 1}) == []
    assert flow(tmp_path) == ["calibrate", "engine", "drift"], "and back"


@pytest.mark.parametrize("damage", ["tampered", "emptied", "missing", "a folder", "a link"])
def test_a_damaged_output_is_made_anew(tmp_path, damage):
    flow(tmp_path)
    path = tmp_path / "engine.out"
    if damage == "tampered":
        path.write_text("engine of 1")
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    if damage == "a folder":
        path.mkdir()
        (path / "mine.txt").write_text("the user's")
        with pytest.raises(UsageError, match=r"name of a file of the build[\s\S]*engine\.out[\s\S]*move it away"):
            flow(tmp_path)
        assert "drift" in outputs(tmp_path)
        (path / "mine.txt").unlink()
        path.rmdir()
    if damage == "a link":
        (tmp_path / "elsewhere").write_text("engine of 0")
        path.symlink_to(tmp_path / "elsewhere")
    assert flow(tmp_path) == ["engine", "drift"]
    assert path.read_text() == "engine of 0"
    assert not path.is_symlink()


def test_later_files_stay_until_a_step_is_complete_and_no_longer(tmp_path):
    flow(tmp_path)
    log = []
    flow(tmp_path, reads={"calibrate": 1}, log=log)
    assert log[0] == ("calibrate", sorted(f"{name}.out" for name in FLOW))
    assert log[1] == ("engine", ["calibrate.out", "export.out"])


def test_files_are_removed_last_step_first(tmp_path, monkeypatch):
    """A kill between two removals then leaves a prefix of the flow, also when the record was read from the disk."""
    flow(tmp_path)
    removed = []
    real = module.Path.unlink

    def unlink(self, missing_ok=False):
        removed.append(self.stem)
        real(self, missing_ok)

    monkeypatch.setattr(module.Path, "unlink", unlink)
    flow(tmp_path, reads={"export": 1})
    assert [name for name in removed if name in FLOW][:3] == ["drift", "engine", "calibrate"]


@pytest.mark.parametrize("error_at", FLOW)
@pytest.mark.parametrize(
    "error",
    [FAILED, KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("boom")],
    ids=["refusal", "Ctrl-C", "full disk", "fault"],
)
def test_a_failing_step_leaves_the_folder_as_it_was(tmp_path, error_at, error):
    flow(tmp_path)
    (tmp_path / SIGNATURE).write_text("signed")
    before = contents(tmp_path)
    with pytest.raises(type(error)):
        flow(tmp_path, reads={error_at: 1}, fail_at=error_at, error=error)
    assert contents(tmp_path) == before
    assert flow(tmp_path) == [], "and it is unlocked"


def test_a_failed_step_keeps_the_finished_ones_before_it(tmp_path):
    flow(tmp_path)
    with pytest.raises(InputError, match="step failed"):
        flow(tmp_path, reads={"calibrate": 1}, fail_at="engine")
    assert outputs(tmp_path) == ["calibrate", "export"]
    assert sorted(record(tmp_path)) == ["calibrate", "export"]
    assert flow(tmp_path, reads={"calibrate": 1}) == ["engine", "drift"]


def test_a_build_that_fails_its_check_leaves_no_earlier_one_in_its_place(tmp_path):
    flow(tmp_path)
    (tmp_path / SIGNATURE).write_text("signed")
    with pytest.raises(VerdictError, match="below its floor"):
        flow(tmp_path, reads={"engine": 1}, fail_at="engine", error=VerdictError("below its floor"))
    assert outputs(tmp_path) == ["calibrate", "export"]
    assert sorted(record(tmp_path)) == ["calibrate", "export"]
    assert not (tmp_path / SIGNATURE).exists()


def test_without_its_record_a_folder_keeps_nothing_that_a_failing_run_did_not_make(tmp_path):
    flow(tmp_path)
    (tmp_path / RECORD).unlink()
    (tmp_path / "mine.txt").write_text("the user's")
    with pytest.raises(InputError, match="step failed"):
        flow(tmp_path, fail_at="calibrate")
    assert outputs(tmp_path) == ["export"]
    assert (tmp_path / "mine.txt").exists()


def test_steps_of_another_flow_are_forgotten_when_something_changes(tmp_path):
    flow(tmp_path, steps=("export", "calibrate", "drift"))
    assert flow(tmp_path, steps=("export", "engine", "drift")) == ["engine", "drift"]
    assert outputs(tmp_path) == ["drift", "engine", "export"]
    assert sorted(record(tmp_path)) == ["drift", "engine", "export"]


def test_other_outputs_of_a_step_are_another_step(tmp_path):
    for writes, expected in ((("a.out",), True), (("a.out",), False), (("b.out",), True), (("a.out", "b.out"), True)):
        with Workspace.open(tmp_path, ARTIFACTS, force=False, on_wait=no_wait) as workspace:
            step = Step("s", {}, writes, lambda out, _advance, writes=writes: [(out / w).write_text("x") for w in writes])
            assert workspace.run(step, Silent()) == expected


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"export": 5}',
        '{"export": {}}',
        '{"export": {"reads": 1, "writes": 2}}',
        '{"schema_version": 1, "steps": {}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_damaged_record_is_worth_nothing(tmp_path, content):
    flow(tmp_path)
    (tmp_path / RECORD).write_bytes(content.encode("latin-1"))
    assert flow(tmp_path) == list(FLOW)
    assert flow(tmp_path) == []


def test_the_record_is_sealed(tmp_path):
    """The seal as the docstring of `engines.build_folder.step_record` defines it, computed with json and hashlib alone."""
    flow(tmp_path)
    data = (tmp_path / RECORD).read_bytes()
    fields = json.loads(data)
    assert data == canonical(fields)
    assert fields.pop("seal") == hashlib.sha256(canonical(fields)).hexdigest()
    assert fields["schema_version"] == 1
    assert list(fields["steps"]) == sorted(FLOW)
    for name, step in fields["steps"].items():
        assert step["writes"] == {f"{name}.out": hashlib.sha256(f"{name} of 0".encode()).hexdigest()}


def canonical(value):
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def test_whatever_is_flipped_in_the_record_it_is_worth_nothing(tmp_path):
    flow(tmp_path)
    path, rng = tmp_path / RECORD, random.Random(3)
    good = path.read_bytes()
    for position in (0, len(good) // 2, len(good) - 1, *(rng.randrange(len(good)) for _ in range(12))):
        data = bytearray(good)
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert flow(tmp_path) == list(FLOW), position
        assert path.read_bytes() == good, "the same steps leave the same record"


@pytest.mark.parametrize("change", ["no seal", "another seal", "an unknown field", "other white space", "an unsealed record"])
def test_a_record_that_says_the_same_in_another_form_is_worth_nothing(tmp_path, change):
    flow(tmp_path)
    fields = json.loads((tmp_path / RECORD).read_text())
    changed = {
        "no seal": canonical({k: v for k, v in fields.items() if k != "seal"}),
        "another seal": canonical({**fields, "seal": "0" * 64}),
        "an unknown field": canonical({**fields, "comment": ""}),
        "other white space": json.dumps(fields, sort_keys=True).encode(),
        "an unsealed record": canonical(fields["steps"]),
    }[change]
    (tmp_path / RECORD).write_bytes(changed)
    assert flow(tmp_path) == list(FLOW)


def test_a_signature_goes_as_soon_as_anything_changes_and_not_before(tmp_path):
    flow(tmp_path)
    (tmp_path / SIGNATURE).write_text("signed")
    assert flow(tmp_path) == []
    assert (tmp_path / SIGNATURE).exists(), "nothing changed"
    log = []
    assert flow(tmp_path, reads={"drift": 1}, log=log) == ["drift"]
    assert not (tmp_path / SIGNATURE).exists()
    (tmp_path / SIGNATURE).write_text("signed")
    with pytest.raises(InputError, match="step failed"):
        flow(tmp_path, force=True, fail_at="calibrate")
    assert not (tmp_path / SIGNATURE).exists(), "also when the build that changed it failed"


def test_a_folder_is_locked_against_builds_and_a_copy_is_left_as_it_is(tmp_path):
    flow(tmp_path)
    waited = []
    with locked(tmp_path, no_wait):
        handle = os.open(tmp_path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            module.fcntl.flock(handle, module.fcntl.LOCK_EX | module.fcntl.LOCK_NB)
        os.close(handle)
    with locked(tmp_path, waited.append):
        pass
    assert waited == []
    (tmp_path / ".lock").unlink()
    with locked(tmp_path, no_wait):
        assert not (tmp_path / ".lock").exists()


def test_another_version_of_the_toolkit_runs_everything(tmp_path, monkeypatch):
    flow(tmp_path)
    monkeypatch.setattr(module, "toolkit_sha256", lambda: "another")
    assert flow(tmp_path) == list(FLOW)


def test_digest_of_the_toolkit_is_of_all_its_sources():
    module.toolkit_sha256.cache_clear()
    assert len(module.toolkit_sha256()) == 64
    assert module.toolkit_sha256() == module.toolkit_sha256.__wrapped__()


def test_digest_of_a_file_is_the_recorded_one(tmp_path):
    flow(tmp_path)
    with Workspace.open(tmp_path, ARTIFACTS, force=False, on_wait=no_wait) as workspace:
        recorded = workspace.sha256("export.out")
        assert recorded == record(tmp_path)["export"]["writes"]["export.out"]
        (tmp_path / "stray").write_text("x")
        assert workspace.sha256("stray") != recorded


def test_a_folder_with_somebodys_own_files_of_these_names_is_refused(tmp_path):
    (tmp_path / "engine.out").write_text("the user's")
    with pytest.raises(InputError, match=r"no build wrote[\s\S]*engine\.out[\s\S]*another --out"):
        flow(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["engine.out"]
    (tmp_path / "engine.out").rename(tmp_path / "mine.out")
    assert flow(tmp_path) == list(FLOW)
    assert (tmp_path / "mine.out").read_text() == "the user's"


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    (tmp_path / ".export.out.abc123.tmp").write_text("half")
    (tmp_path / "mine.tmp").write_text("the user's")
    (tmp_path / ".editor.tmp").write_text("the user's")
    with Workspace.open(tmp_path, ARTIFACTS, force=False, on_wait=no_wait):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".editor.tmp", ".lock", "mine.tmp"]


@pytest.mark.parametrize("where", ["below a file", "is a file"])
def test_a_folder_that_cannot_be_written(tmp_path, where):
    file = tmp_path / "file"
    file.write_text("in the way")
    with (
        pytest.raises(MissingError, match=r"output folder cannot be written[\s\S]*choose another --out"),
        Workspace.open(file / "out" if where == "below a file" else file, ARTIFACTS, force=False, on_wait=no_wait),
    ):
        pass
    assert file.read_text() == "in the way"


def hold(folder, held, release):
    with Workspace.open(folder, ARTIFACTS, force=False, on_wait=no_wait) as workspace:
        held.set()
        assert release.wait(TIMEOUT)
        step = Step("export", {}, ("export.out",), lambda out, _advance: (out / "export.out").write_text("first"))
        workspace.run(step, Silent())


def wait_for_it(folder, waiting, result):
    with Workspace.open(folder, ARTIFACTS, force=False, on_wait=lambda _text: waiting.set()) as workspace:
        step = Step("export", {}, ("export.out",), lambda out, _advance: (out / "export.out").write_text("second"))
        ran = workspace.run(step, Silent())
        result.put((waiting.is_set(), ran, (folder / "export.out").read_text()))


def test_a_second_build_waits_for_the_first_and_reuses_its_work(tmp_path):
    held, release, waiting, result = spawn.Event(), spawn.Event(), spawn.Event(), spawn.Queue()
    first = spawn.Process(target=hold, args=(tmp_path, held, release))
    second = spawn.Process(target=wait_for_it, args=(tmp_path, waiting, result))
    try:
        first.start()
        assert held.wait(TIMEOUT)
        second.start()
        assert waiting.wait(TIMEOUT), "it says that it waits"
        assert second.is_alive()
        assert not (tmp_path / "export.out").exists()
        release.set()
        assert result.get(timeout=TIMEOUT) == (True, False, "first")
        for process in (first, second):
            process.join(TIMEOUT)
            assert process.exitcode == 0
    finally:
        for process in (first, second):
            if process.is_alive():
                process.kill()


CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def kill_at_every_change(folder, result):
    """Fork a run for each change that it makes to the names in the folder, and kill it just before that change."""
    codes = []
    for nth in range(1, 100):
        copy = folder.with_name(f"killed-{nth:02}")
        shutil.copytree(folder, copy)
        process = os.fork()
        if not process:
            left = iter(range(nth, 0, -1))

            def die(event, _arguments, left=left):
                if event in CHANGES and next(left) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(die)
            flow(copy, reads={"engine": 1})
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        if codes[-1] == 0:
            break
    result.put(codes)


def test_a_kill_at_any_change_loses_nothing(tmp_path):
    """Oracles: the folder before, and one in which the same run was not killed."""
    old, result = tmp_path / "old", spawn.Queue()
    flow(old)
    (old / SIGNATURE).write_text("signed")
    shutil.copytree(old, tmp_path / "new")
    flow(tmp_path / "new", reads={"engine": 1})
    before, after = contents(old), contents(tmp_path / "new")
    process = spawn.Process(target=kill_at_every_change, args=(old, result))
    process.start()
    codes = result.get(timeout=TIMEOUT)
    process.join(TIMEOUT)
    folders = sorted(tmp_path.glob("killed-*"))
    assert codes == [-signal.SIGKILL] * (len(folders) - 1) + [0]
    assert len(folders) > 15
    middle, seen = {name: after[name] for name in after if name not in ("drift.out", RECORD)}, set()
    for folder in folders:
        if "drift" in outputs(folder):
            same = [state for state in (before, after) if state["engine.out"] == (folder / "engine.out").read_bytes()]
            assert same, "a verdict about an engine that is not there"
        settle(folder, ARTIFACTS)
        settled = {name: data for name, data in contents(folder).items() if name not in (RECORD, MARK)}
        states = [{n: d for n, d in state.items() if n != RECORD} for state in (before, middle, after)]
        assert settled in states, folder
        seen.add(states.index(settled))
        ran = flow(folder, reads={"engine": 1})
        assert ran == [["engine", "drift"], ["drift"], []][states.index(settled)]
        assert contents(folder) == after
    assert seen == {0, 1, 2}


def die_in_the_middle(folder, reached):
    def run(out, _advance):
        (out / "calibrate.out").write_text("half")
        reached.set()
        os.kill(os.getpid(), signal.SIGKILL)

    with Workspace.open(folder, ARTIFACTS, force=False, on_wait=no_wait) as workspace:
        workspace.run(Step("export", {"value": 0}, ("export.out",), lambda _out, _advance: None), Silent())
        workspace.run(Step("calibrate", {"value": 1}, ("calibrate.out",), run), Silent())


def test_a_build_that_was_killed_can_be_run_again(tmp_path):
    flow(tmp_path)
    (tmp_path / SIGNATURE).write_text("signed")
    before, reached = contents(tmp_path), spawn.Event()
    process = spawn.Process(target=die_in_the_middle, args=(tmp_path, reached))
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == -signal.SIGKILL
    assert reached.is_set()
    assert contents(tmp_path) == before, "as it was"
    assert flow(tmp_path, reads={"calibrate": 1}) == ["calibrate", "engine", "drift"], "half of a file is not the whole"
    assert (tmp_path / "calibrate.out").read_text() == "calibrate of 1"
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize("when", ["in a step", "in a step that creates it again", "between two"])
def test_a_folder_that_is_deleted_under_a_running_build(tmp_path, when):
    folder = tmp_path / "out"

    def deleting(out, _advance):
        shutil.rmtree(folder)
        if "again" in when:
            write_bytes(out / "export.out", b"whole")

    def run():
        with Workspace.open(folder, ARTIFACTS, force=False, on_wait=no_wait) as workspace:
            if when != "between two":
                workspace.run(Step("export", {}, ("export.out",), deleting), Silent())
            shutil.rmtree(folder)
            workspace.sha256("export.out")

    with pytest.raises(MissingError, match=r"was deleted during the run[\s\S]*same command again"):
        run()
    assert not folder.exists()
    assert flow(folder) == list(FLOW)


@pytest.mark.parametrize("stray", ["a file", "a link", "a folder", "a forged record"])
def test_what_stands_in_the_place_of_the_staging_folder_moves_nothing(tmp_path, stray):
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    flow(folder)
    elsewhere.mkdir()
    (elsewhere / "engine.out").write_text("another")
    before, staging = contents(folder), folder / STAGING
    if stray == "a file":
        staging.write_text("x")
    elif stray == "a link":
        staging.symlink_to(elsewhere)
    else:
        shutil.copytree(elsewhere, staging)
    if stray == "a forged record":
        (staging / RECORD).write_bytes((folder / RECORD).read_bytes().replace(b"engine.out", b"../engine.out"))
    assert flow(folder) == []
    assert contents(folder) == before
    assert not staging.exists()
    assert (elsewhere / "engine.out").read_text() == "another"
