"""Keys and passphrases are read from regular files of bounded size; everything else is refused at once."""

import os
import socket

import pytest
from pem_keys import pem_pair

from calib.errors import UsageError
from engines.build_folder.keys import load_private_key, load_public_key


@pytest.fixture
def pair(tmp_path):
    pytest.importorskip("cryptography", reason="pip install 'ufovit-edge[sign]'")
    return pem_pair(tmp_path, "ours")


def irregular(folder):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe", 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    (folder / "link").symlink_to("/dev/zero")
    return [folder / name for name in ("folder", "pipe", "socket", "link")]


def test_what_is_not_a_regular_file_is_refused_at_once(pair, tmp_path):
    for path in irregular(tmp_path):
        for read in (load_private_key, load_public_key, lambda p: load_private_key(pair[0], p)):
            with pytest.raises(UsageError, match=f"not a regular file[\\s\\S]*{path}"):
                read(path)


def test_a_file_that_is_too_large_is_not_read(pair, tmp_path):
    large = tmp_path / "large"
    large.touch(0o600)
    os.truncate(large, 1 << 40)
    for read in (load_private_key, load_public_key, lambda p: load_private_key(pair[0], p)):
        with pytest.raises(UsageError, match="file is too large"):
            read(large)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"-----BEGIN PUBLIC KEY-----\n", b"\xff\xfe-\0", b"version https://git-lfs.github.com\n"]
)
def test_damaged_keys(pair, tmp_path, content):
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (load_private_key, load_public_key):
        with pytest.raises(UsageError, match=r"bad\.pem"):
            read(path)


def test_good_keys_are_read_through_a_link_too(pair, tmp_path):
    for path, read in zip(pair, (load_private_key, load_public_key), strict=True):
        link = tmp_path / f"link-{path.name}"
        link.symlink_to(path)
        assert type(read(path)) is type(read(link))
