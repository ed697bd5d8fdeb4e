"""What `parse_json` and `open_regular` refuse: hostile files are made here; oracles are RFC 8259 and the operating system."""

import json
import os
import random
import socket
import sys
from dataclasses import dataclass

import pytest

from calib.artifact import read_artifact, write_artifact
from calib.errors import ArtifactError, DataError
from calib.files import canonical_json, describe_foreign, read_regular, sha256_file
from calib.json_reader import LARGEST_JSON_BYTES, parse_json, read_json


@dataclass(frozen=True)
class Sample:
    """A class with one field of every kind."""

    name: str
    count: int
    share: float
    names: tuple[str, ...]
    by_name: dict[str, float]
    whether: bool = False


SAMPLE = Sample("a", 3, 0.5, ("x", "y"), {"z": 1.0})
FIELDS = {"schema_version": 1, "name": "a", "count": 3, "share": 0.5, "names": ["x", "y"], "by_name": {"z": 1.0}}
GOOD = canonical_json(FIELDS)

HOSTILE = {
    "100,000 levels": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply nested"),
    "900 levels": (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", "too deeply nested"),
    "900 levels of objects": (b'{"a":' * 900 + b"1" + b"}" * 900, "too deeply nested"),
    "10^400 as an integer": (b'{"a": 1' + b"0" * 400 + b"}", "a number of 401 characters"),
    "5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 characters"),
    "-5,000 digits": (b'{"a": -' + b"9" * 5000 + b"}", "a number of 5001 characters"),
    "1e400": (b'{"a": [1e400]}', "1e400, which is not a finite number"),
    "NaN": (b'{"a": NaN}', "NaN, which is not a finite number"),
    "Infinity": (b'{"a": {"b": -Infinity}}', "-Infinity, which is not a finite number"),
    "a name twice": (b'{"a": {"b": 1, "b": 2}}', "the name 'b' twice"),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, "UTF-8 text with a byte order mark"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16 text with a byte order mark"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-be"), "Expecting"),
    "Latin-1": ('{"name": "ü"}'.encode("latin-1"), "can't decode byte"),
    "half of a surrogate pair": (b'{"a": ["\\ud800"]}', "surrogates not allowed"),
    "half of a pair as a name": (b'{"\\udfff": 1}', "surrogates not allowed"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(4096), "nothing but blanks or zeros"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
    "a merge conflict": (b'{\n<<<<<<< HEAD\n"a": 1\n=======\n"a": 2\n>>>>>>> theirs\n}\n', "the markers of a merge conflict"),
    "too large": (b'{"a": "' + b"x" * LARGEST_JSON_BYTES + b'"}', "file is too large"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused_with_the_file_and_the_cause(tmp_path, name):
    content, says = HOSTILE[name]
    path = tmp_path / "sample.json"
    path.write_bytes(content)
    for read in (lambda: read_json(path, remake="the command"), lambda: read_artifact(path, Sample, remake="the command")):
        with pytest.raises(ArtifactError) as refused:
            read()
        text = str(refused.value)
        assert says in text
        assert str(path) in text
        assert "the command" in text
        assert len(text) < 1000
        text.encode()


def test_good_json_is_read_as_the_standard_library_reads_it(tmp_path):
    write_artifact(tmp_path / "a.json", SAMPLE)
    assert read_artifact(tmp_path / "a.json", Sample, remake="") == SAMPLE
    nested = {"a": 1}
    for _ in range(30):
        nested = {"a": [nested] if len(str(nested)) % 2 else nested}
    for value in (FIELDS, {"t": "\U0001f600 ü \\u", "n": [2**64 - 1, -(2**63), 1e-400, 1.5e300, -0.0]}, nested, {}):
        for data in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            assert parse_json(data.encode(), "a") == parse_json(data, "a") == json.loads(data)


def test_output_of_a_library_may_repeat_names_and_be_infinite():
    assert parse_json('{"a": 1, "a": Infinity}', "x", strict=False) == {"a": float("inf")}
    with pytest.raises(ArtifactError, match="deeply"):
        parse_json("[" * 100_000, "x", strict=False)


def test_a_wrong_type_in_every_field_is_refused(tmp_path):
    """Every field by every kind of value; where Python's types agree, and for the whole number as a float, it is read."""
    values = (None, True, 3, 0.5, "a", ["x"], [1], [["x"]], {"z": 1.0}, {"z": "a"}, {}, [], 2**64)
    fits = {
        "name": lambda v: isinstance(v, str),
        "count": lambda v: type(v) is int,
        "share": lambda v: type(v) in (int, float),
        "names": lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
        "by_name": lambda v: isinstance(v, dict) and all(type(x) is float for x in v.values()),
        "whether": lambda v: isinstance(v, bool),
    }
    path, read = tmp_path / "a.json", 0
    for field, good in fits.items():
        for value in values:
            path.write_bytes(canonical_json({**FIELDS, field: value}))
            if good(value):
                read_artifact(path, Sample, remake="")
                read += 1
            else:
                with pytest.raises(ArtifactError, match=f"malformed artifact[\\s\\S]*{field}"):
                    read_artifact(path, Sample, remake="")
    assert read == 1 + 2 + 3 + 2 + 2 + 1


def test_bytes_changed_at_random_are_read_or_refused():
    rng = random.Random(5)
    tokens = (b"{", b"[", b'"', b"\\ud800", b"1e999", b"NaN", b"\x00", b"\xff", b"9" * 30, b",", b":")
    outcomes = set()
    for _ in range(3000):
        data = bytearray(GOOD)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 4)] = rng.choice(tokens)
        try:
            parse_json(bytes(data), "a")
            outcomes.add("read")
        except ArtifactError as error:
            str(error).encode()
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def irregular(folder):
    """Kind -> a path that is not a regular file, or a link to such a one."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.close()
    (folder / "link").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    return {
        "/dev/zero": "a device",
        "/dev/stdin" if sys.stdin is None else "/dev/null": "a device",
        folder / "folder": "a folder",
        folder / "pipe": "a pipe",
        folder / "socket": "a socket",
        folder / "link": "a device",
        folder / "loop": "symbolic links",
        folder / ("n" * 300): "name too long",
    }


def test_what_is_not_a_regular_file_is_neither_read_nor_waited_for(tmp_path):
    for path, says in irregular(tmp_path).items():
        for read in (lambda p: read_regular(p, DataError, largest=9, remake="cmd"), read_json, sha256_file):
            with pytest.raises((DataError, ArtifactError), match=rf"(?i){says}") as refused:
                read(type(tmp_path)(path))
            assert str(path) in str(refused.value)


def test_files_of_a_size_and_links_to_them_are_read(tmp_path):
    path, link = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"123456789")
    link.symlink_to(path)
    assert read_regular(path, largest=9) == read_regular(link, largest=9) == b"123456789"
    with pytest.raises(ArtifactError, match="too large"):
        read_regular(path, largest=8)
    with pytest.raises(ArtifactError, match="found a symbolic link"):
        read_regular(link, largest=9, follow_links=False)
    with pytest.raises(ArtifactError, match="too large"):  # its status says 0 bytes
        read_regular(type(path)("/proc/self/maps"), largest=100)
    os.truncate(path, 1 << 40)
    with pytest.raises(ArtifactError, match="too large"):
        read_json(path)


def test_an_ordinary_file_is_not_called_foreign():
    for data in (GOOD, b"\x08\x09\x12", b"PK\x03\x04", b"-----BEGIN PUBLIC KEY-----", b'{"a": "<html"}'):
        assert describe_foreign(data) is None
