"""A damaged baseline is refused with its cause, and the next command restores it: `--update` replaces what was reviewed."""

import json
import os

import pytest
from gate_builds import edit, plant, set_field

from edge.cli import run
from edge.gate.baseline import read_baseline
from edge.gate.update import update_baseline
from engines.build_folder.folder import BuildFolder


@pytest.fixture
def base(tmp_path):
    folder, path = plant(tmp_path / "good"), tmp_path / "good.json"
    update_baseline(BuildFolder(folder), path)
    return folder, path


def conflict(data):
    head, _, rest = data.partition(b"\n")
    return head + b"\n<<<<<<< HEAD\n" + rest + b"=======\n" + rest + b">>>>>>> theirs\n"


DAMAGE = {
    "a byte order mark": (lambda data: b"\xef\xbb\xbf" + data, "UTF-8 text with a byte order mark"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), "UTF-16 text with a byte order mark"),
    "empty": (lambda _: b"", "an empty file"),
    "cut": (lambda data: data[:-300], "not a JSON file"),
    "a Git LFS pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "a merge conflict": (conflict, "the markers of a merge conflict"),
    "a merge conflict from the first line": (lambda data: b"<<<<<<< HEAD\n" + data, "the markers of a merge conflict"),
    "a field lost": (lambda data: data.replace(b'"reviewed_by"', b'"reviewed"'), "malformed artifact"),
    "an unknown task": (lambda data: data.replace(b'"task": "classification"', b'"task": "x"'), "unknown task 'x'"),
    "a figure edited": (lambda data: data.replace(b'"engine_bytes": 300000', b'"engine_bytes": 1'), "do not match its seal"),
    "of a later release": (lambda data: data.replace(b'"schema_version": 2', b'"schema_version": 3'), "unknown schema version"),
}


NEXT = {
    "a byte order mark": "save {} as UTF-8 without a byte order mark",
    "UTF-16": "save {} as UTF-8 without a byte order mark",
    "a Git LFS pointer": "git lfs pull",
    "a merge conflict": "git checkout --ours {}",
    "a merge conflict from the first line": "git checkout --ours {}",
}
"""Damage that `git restore` does not repair, as it is what git restores, or as git refuses to."""


@pytest.mark.parametrize("name", DAMAGE)
def test_the_cause_is_named_and_the_file_restored(base, capsys, name):
    damage, says = DAMAGE[name]
    good = base[1].read_bytes()
    base[1].write_bytes(damage(good))
    assert base[1].read_bytes() != good
    assert run(["gate", str(base[0]), "--baseline", str(base[1])]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert f"next: {NEXT.get(name, 'git restore {}')}".format(base[1]) in error
    assert "--update" not in error


def test_what_is_not_a_file_is_refused_at_once(base, tmp_path, capsys):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    for path in (pipe, link, tmp_path):
        for option in ("--baseline", "--latency"):
            files = {"--baseline": base[1]} | {option: path}
            assert run(["gate", str(base[0]), *(str(word) for pair in files.items() for word in pair)]) == 2
            error = capsys.readouterr().err
            assert "not a regular file" in error
            assert "--update" not in error


def test_a_missing_one_and_one_of_an_earlier_version_are_made(base, tmp_path, capsys):
    assert run(["gate", str(base[0]), "--baseline", str(tmp_path / "none.json")]) == 2
    assert "--update" in capsys.readouterr().err
    edit(base[1], set_field("schema_version", to=1))
    assert run(["gate", str(base[0]), "--baseline", str(base[1])]) == 2
    assert "--update" in capsys.readouterr().err


def test_a_figure_that_no_scale_has_is_refused_although_it_is_sealed(base, capsys):
    baseline = read_baseline(base[1])
    fields = json.loads(base[1].read_bytes())
    fields["measured"]["scales"] = {"made": "", "folds_sha256": "", "activations": {"x": 1e308}, "weights": {}}
    base[1].write_text(json.dumps(fields))
    assert run(["gate", str(base[0]), "--baseline", str(base[1])]) == 2
    assert "invalid scale" in capsys.readouterr().err
    assert baseline.seal


def test_a_good_one_passes(base):
    assert run(["gate", str(base[0]), "--baseline", str(base[1])]) == 0
