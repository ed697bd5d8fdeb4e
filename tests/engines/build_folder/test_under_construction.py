"""A build folder that a build is changing, or was changing when it ended, is refused; no reader takes the build's lock."""

import fcntl
import os

import pytest
from gate_builds import plant, read_build

from calib.errors import ArtifactError, EvidenceError, MissingError
from calib.files import sha256_file
from edge.camera.camera_request import CameraRequest
from edge.camera.session import View, run_camera
from edge.cli import run
from engines.build_folder.authenticate import read_authenticated
from engines.build_folder.folder import BuildFolder
from engines.build_folder.step_record import read_record, write_record
from engines.build_folder.under_construction import MARK, finishing, mark_under_construction
from engines.build_folder.verify import examine_folder

WORDS = "the build folder is under construction"


@pytest.fixture
def folder(tmp_path):
    return plant(tmp_path / "build")


def camera(folder):
    return run_camera(CameraRequest(folder, "synthetic://"), View(print, lambda *_arguments: None))


@pytest.mark.parametrize("read", [BuildFolder, read_authenticated, camera])
def test_a_reader_refuses_it(folder, read):
    mark_under_construction(folder)
    with pytest.raises(ArtifactError, match=rf"{WORDS}(?s:.*)next: wait until that build ends"):
        read(folder)


@pytest.mark.parametrize("command", ["verify", "verify --partial", "inspect", "gate", "bench", "bundle", "sign"])
def test_a_command_refuses_it_without_waiting_and_says_what_to_do(folder, command, capsys):
    options = {"gate": ["--baseline", str(folder / "none.json")], "sign": ["--key", str(folder / "key.pem")]}
    if command == "sign":
        pem_keys = pytest.importorskip("pem_keys")
        options["sign"][1] = str(pem_keys.pem_pair(folder.parent, "ours")[0])
    else:  # `ufovit sign` writes, and waits
        (folder / ".lock").touch()
    mark_under_construction(folder)
    before = {path.name: sha256_file(path) for path in folder.iterdir()}
    descriptor = os.open(folder, os.O_RDONLY) if command == "sign" else os.open(folder / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # a build is running
    try:
        name, *more = command.split()
        assert run([name, str(folder), *more, *options.get(name, [])]) == 2
    finally:
        os.close(descriptor)
    error = capsys.readouterr().err
    assert WORDS in error
    assert "repeat its command (ufovit build, drift or report)" in error
    assert {path.name: sha256_file(path) for path in folder.iterdir()} == before


def test_a_finished_folder_is_read(folder):
    (folder / ".lock").touch()  # every build leaves it
    assert read_build(folder).drift.verdict == "pass"
    assert run(["verify", str(folder)]) == run(["inspect", str(folder)]) == 0


def test_a_build_that_begins_while_a_reader_reads_is_noticed(folder, capsys):
    """Files that it has removed by then look like those that a device never had."""
    build = BuildFolder(folder)
    mark_under_construction(folder)
    for file in ("drift.json", "logits.npz"):
        (folder / file).unlink()
    for complete in (True, False):
        with pytest.raises(ArtifactError, match=WORDS):
            examine_folder(build, complete=complete)
    (folder / MARK).unlink()
    assert run(["inspect", str(folder)]) == 0, "a copy without them"
    assert "none: no drift.json" in capsys.readouterr().out


def test_a_build_that_begins_and_ends_while_a_reader_reads_is_noticed(folder):
    """It leaves no mark, but a new record, here of the same content."""
    build, own = BuildFolder(folder), BuildFolder(folder, building=True)
    examine_folder(build)
    write_record(folder, read_record(folder))
    with pytest.raises(ArtifactError, match="changed the folder while it was read"):
        examine_folder(build)
    examine_folder(own)


def test_the_build_itself_reads_what_it_has_written(folder):
    mark_under_construction(folder)
    assert BuildFolder(folder, building=True).manifest.model == "ufovit_t"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ArtifactError])
def test_the_mark_stays_when_a_build_ends_half_way(tmp_path, error):
    mark_under_construction(tmp_path)
    with pytest.raises(error), finishing(tmp_path):
        raise error("half-way")
    assert (tmp_path / MARK).exists()
    with finishing(tmp_path):
        pass
    assert not (tmp_path / MARK).exists()


def test_nothing_is_left_to_do_where_evidence_is_lacking(tmp_path):
    mark_under_construction(tmp_path)
    with pytest.raises(EvidenceError), finishing(tmp_path):
        raise EvidenceError("no GPU")
    assert not (tmp_path / MARK).exists()


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path):
    with pytest.raises(MissingError, match=r"folder cannot be written[\s\S]*next: "):
        mark_under_construction(tmp_path / "none")
