"""Where outputs go: whole or not at all, into devices and pipes as they are, never over a folder or a socket."""

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from calib.errors import MissingError, UsageError
from calib.files import atomic_path, check_output, write_bytes

ROOT = Path(__file__).resolve().parents[2]
DATA = bytes(range(256)) * 5


def device(path, name):
    """A device node like that of /dev, or a link to it where none can be made."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, Path(name).stat().st_rdev)
        path.open("wb").close()
    except OSError:
        path.unlink(missing_ok=True)
        path.symlink_to(name)
    return path


def test_a_file_is_replaced_and_a_failed_block_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    write_bytes(path, DATA)
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_device_stays_a_device(tmp_path):
    full, null = device(tmp_path / "full", "/dev/full"), device(tmp_path / "null", "/dev/null")
    with pytest.raises(MissingError, match=r"disk full[\s\S]*full"):
        write_bytes(full, DATA)
    write_bytes(null, DATA)
    for path in (full, null):
        assert stat.S_ISCHR(path.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "null"]


def test_a_pipe_gets_the_whole_data(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with atomic_path(pipe) as temporary:  # as a ZIP archive is written: read again, and changed
        temporary.write_bytes(DATA)
        with temporary.open("r+b") as stream:
            stream.seek(-2, 2)
            stream.write(b"zz")
    reader.join(10)
    assert got == [DATA[:-2] + b"zz"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_an_open_file_is_written_where_it_stands(tmp_path, name):
    """`--json /dev/stdout > FILE`: what was printed before and after stays, and /dev has its link."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    program = (
        f"import os; from pathlib import Path; from calib.files import write_bytes; os.write(1, b'before ')\n"
        f"write_bytes(Path({str(tmp_path / name)!r}), b'data '); os.write(1, b'after')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True, cwd=ROOT)
    assert (tmp_path / "out").read_bytes() == b"before data after"
    assert Path("/dev/stdout").is_symlink()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["a folder", "a socket", "a link to a folder"])
def test_folders_and_sockets_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    path = Path("out")
    if kind == "a socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind("out")
        server.close()
    elif kind == "a folder":
        path.mkdir()
    else:
        Path("folder").mkdir()
        path.symlink_to("folder")
    before = sorted(p.name for p in tmp_path.iterdir())
    for write in (check_output, lambda path: write_bytes(path, DATA)):
        with pytest.raises(UsageError, match=rf"cannot be written there[\s\S]*{kind.split()[-1]}[\s\S]*a file, a pipe"):
            write(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("length", [250, 255])
def test_the_longest_name_is_written(tmp_path, length):
    write_bytes(tmp_path / ("x" * length), DATA)
    assert (tmp_path / ("x" * length)).read_bytes() == DATA
    write_bytes(tmp_path / ("\u732b" * 85), DATA)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["x" * 256, "x" * 256 + "/a", "y/" * 3000 + "a", "loop", "loop/a", "file/a"])
def test_a_path_that_cannot_be_is_something_this_machine_lacks(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    for write in (lambda path: write_bytes(path, DATA), check_output):
        with pytest.raises(MissingError, match=r"folder cannot be written"):
            write(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, number):
    with pytest.raises(MissingError, match=r"disk full, nothing was written[\s\S]*free space"), atomic_path(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_the_largest_file_that_is_allowed(tmp_path):
    """EFBIG by the kernel's own limit, in a process of its own."""
    program = (
        "import resource, sys; from pathlib import Path; from calib.files import write_bytes\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))\n"
        f"write_bytes(Path({str(tmp_path / 'a')!r}), bytes(1001))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "calib.errors.MissingError: disk full" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_in_a_new_folder_is_accepted_and_nothing_is_created(tmp_path):
    check_output(tmp_path / "new" / "folder" / "a.json")
    check_output(Path("/dev/stdout"))
    assert list(tmp_path.iterdir()) == []
