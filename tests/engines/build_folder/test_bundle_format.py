"""The container of a bundle: what is written is read back, and whatever was changed, forged or cut off is refused by name.

Oracles: zipfile, json, hashlib and struct, used here directly. A forged archive is sealed like a real one, so that only the
check under test can refuse it.
"""

import errno
import hashlib
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from calib.errors import InputError, MissingError
from engines.build_folder.bundle_format import BundleInfo, MemberRecord, open_bundle, verify_bundle, write_bundle
from engines.build_folder.manifest import FileRecord
from engines.layer_records import GraphFacts, Layer, TensorInfo

FACTS = GraphFacts(
    (Layer("a/MatMul", "MatMul", 64, "int8", ""),),
    ("a/MatMul",),
    TensorInfo("image", (-1, 3, 4, 4), "float32"),
    (TensorInfo("logits", (-1, 2), "float32"),),
)
INFO = BundleInfo(
    model="ufovit_tiny",
    precision="int8",
    graph="model.typed.onnx",
    facts=FACTS,
    batch=(1, 2, 4),
    int8_floor=0.5,
    budget_points=1.5,
    random_weights=False,
    reference=FileRecord("model.onnx", "5" * 64),
    reference_ran_on="a test",
    data="some images",
    data_sha256="6" * 64,
    members={},
)
NAMES = ("manifest.json", "model.typed.onnx", "pixels.npy", "shapes.npy", "labels.npy", "logits.npy", "golden.npy")
MEMBERS = {name: random.Random(name).randbytes(90) + name.encode() * 3 for name in NAMES}
HEADER = "bundle.json"


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "a.ufovit"
    write_bundle(path, INFO, MEMBERS)
    return path


def header(**changes):
    """bundle.json of MEMBERS, as json writes it; a field changed to None is left out."""
    members = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in MEMBERS.items()}
    fields = {
        "schema_version": 2, "model": "ufovit_tiny", "precision": "int8", "graph": "model.typed.onnx", "batch": [1, 2, 4],
        "int8_floor": 0.5, "budget_points": 1.5, "random_weights": False, "reference_ran_on": "a test", "data": "some images",
        "data_sha256": "6" * 64, "reference": {"file": "model.onnx", "sha256": "5" * 64}, "members": members,
        "facts": {
            "layers": [{"name": "a/MatMul", "op_type": "MatMul", "macs": 64, "requested": "int8", "problem": ""}],
            "traceable": ["a/MatMul"],
            "input": {"name": "image", "shape": [-1, 3, 4, 4], "dtype": "float32"},
            "outputs": [{"name": "logits", "shape": [-1, 2], "dtype": "float32"}],
        },
    }  # fmt: skip
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def entry(name, *, method=zipfile.ZIP_DEFLATED, mode=0o644):
    made = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    made.compress_type, made.external_attr = method, mode << 16
    return made


def forge(path, fields=None, entries=(), *, without=(), text=None):
    """An archive of MEMBERS with other or further entries, (ZipInfo or name, bytes), and a right seal."""
    whole = {HEADER: text if text is not None else json.dumps(fields or header()).encode(), **MEMBERS}
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of names that are there twice
        for name, data in [*((n, d) for n, d in whole.items() if n not in without), *entries]:
            archive.writestr(entry(name) if isinstance(name, str) else name, data)
        archive.comment = b"0" * 64
    seal(path)
    return path


def seal(path):
    body = path.read_bytes()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())


def regions(data):
    """(first, last + 1, what lies there, member or "") of a ZIP archive, read with struct: PKWARE's APPNOTE 4.3."""
    found, at = [], 0
    while data[at : at + 4] == b"PK\3\4":
        packed, _, name_length, extra_length = struct.unpack("<IIHH", data[at + 18 : at + 30])
        start = at + 30 + name_length + extra_length
        name = data[at + 30 : at + 30 + name_length].decode()
        found += [(at, start, "local header", ""), (start, start + packed, "data", name)]
        at = start + packed
    end = data.rindex(b"PK\5\6")
    return [*found, (at, end, "directory", ""), (end, end + 22, "end record", ""), (end + 22, len(data), "comment", "")]


def same_contents(path, member):
    """Whether a member unpacks to what it was: deflate has bits that mean nothing."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read(member)
    return data == MEMBERS.get(member, data) and (member != HEADER or json.loads(data) == header())


def refusal(path):
    with pytest.raises(InputError) as caught:
        verify_bundle(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_what_is_written_is_read_back(bundle):
    opened = verify_bundle(bundle)
    assert tuple(opened.info.members) == tuple(sorted(NAMES))
    assert {name: opened.read(name) for name in NAMES} == MEMBERS
    assert opened.sha256 == hashlib.sha256(bundle.read_bytes()).hexdigest()
    records = {name: MemberRecord(hashlib.sha256(data).hexdigest(), len(data)) for name, data in MEMBERS.items()}
    assert opened.info == replace(INFO, members=records)


def test_other_programs_can_read_it(bundle):
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}, "or no two files would be equal"
        assert {name: archive.read(name) for name in NAMES} == MEMBERS
        assert json.loads(archive.read(HEADER)) == header()
        assert archive.comment.decode() == hashlib.sha256(bundle.read_bytes()[:-64]).hexdigest()


def test_equal_contents_give_equal_bytes(bundle, tmp_path):
    other = tmp_path / "elsewhere" / "b.ufovit"
    write_bundle(other, INFO, dict(reversed(MEMBERS.items())))
    assert other.read_bytes() == bundle.read_bytes()
    write_bundle(other, replace(INFO, budget_points=1.25), MEMBERS)
    assert other.read_bytes() != bundle.read_bytes()


def test_a_forgery_with_nothing_forged_is_accepted(tmp_path):
    """The control of all that follows: what `forge` writes is refused for what was changed in it, and for nothing else."""
    assert verify_bundle(forge(tmp_path / "a.ufovit")).info.model == "ufovit_tiny"


@pytest.mark.slow
def test_a_flip_in_any_byte_is_refused_and_named(bundle):
    """Every byte of the file, one bit of it; a bundle of a megabyte differs in nothing but the length of its members."""
    good, rng = bundle.read_bytes(), random.Random(0)
    kinds = set()
    for first, last, kind, member in regions(good):
        kinds.add(kind)
        for position in range(first, last):
            changed = bytearray(good)
            changed[position] ^= 1 << rng.randrange(8)
            bundle.write_bytes(changed)
            assert member in refusal(bundle) or same_contents(bundle, member), (kind, position)
    assert kinds == {"local header", "data", "directory", "end record", "comment"}
    assert sum(last - first for first, last, *_ in regions(good)) == len(good)
    bundle.write_bytes(good)
    verify_bundle(bundle)


def test_a_flip_is_found_when_the_archive_is_opened_before_anything_is_read(bundle):
    good = bundle.read_bytes()
    for first, last, _, _ in regions(good):
        for position in (first, (first + last) // 2, last - 1):
            bundle.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            with pytest.raises(InputError):
                open_bundle(bundle)


def test_a_file_that_was_cut_off_or_continued_is_refused(bundle):
    good = bundle.read_bytes()
    for changed in (*(good[:length] for length in range(0, len(good), 7)), good[:-1], good + b"\0", good + good, b"\0" + good):
        bundle.write_bytes(changed)
        refusal(bundle)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all", b"PK\5\6" + bytes(18), random.Random(2).randbytes(5000)])
def test_a_file_that_is_no_archive(tmp_path, content):
    path = tmp_path / "a.ufovit"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_what_is_no_file(tmp_path):
    assert "bundle not found" in refusal(tmp_path / "none.ufovit")
    assert "not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.ufovit")
    assert "not a regular file" in refusal(tmp_path / "pipe.ufovit")


def test_a_file_that_may_not_be_read(bundle, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied", str(bundle))

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    assert "Permission denied" in refusal(bundle)


@pytest.mark.parametrize(
    "name", ["../evil", "..", ".", "/etc/evil", "a/b", "a\\b", "C:evil", "steps.json", "drift.json", ".lock", "model.onnx", "é"]
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_member_of_another_name_is_refused_and_never_written(tmp_path, name, listed):
    record = {name: {"sha256": hashlib.sha256(b"evil").hexdigest(), "bytes": 4}} if listed else {}
    fields = header(members={**header()["members"], **record})
    forge(tmp_path / "a.ufovit", fields, [(name, b"evil")])
    refusal(tmp_path / "a.ufovit")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ufovit"]


@pytest.mark.parametrize("graph", ["../evil", "steps.json", "drift.json", "manifest.json", "engine.engine", ""])
def test_a_graph_of_another_name_is_refused(tmp_path, graph):
    """The graph is what a device writes under its own name: only the two that a build gives it will do."""
    data = MEMBERS["model.typed.onnx"]
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    others = {name: found for name, found in header()["members"].items() if name != "model.typed.onnx"}
    fields = header(graph=graph, members={**others, graph: record})
    path = forge(tmp_path / "a.ufovit", fields, [(graph, data)], without=["model.typed.onnx", graph])
    assert "no such member" in refusal(path)


def test_a_name_that_is_no_utf_8(bundle):
    data = bundle.read_bytes()
    at = data.index(b"PK\1\2")
    changed = bytearray(data)
    changed[at + 8 : at + 10] = (0x800).to_bytes(2, "little")  # the name is in UTF-8, it says
    changed[at + 46] = 0xFF
    bundle.write_bytes(changed)
    seal(bundle)
    refusal(bundle)


def test_members_that_are_there_twice_missing_or_not_listed(tmp_path):
    path = tmp_path / "a.ufovit"
    assert "twice logits.npy" in refusal(forge(path, entries=[("logits.npy", MEMBERS["logits.npy"])]))
    assert "twice bundle.json" in refusal(forge(path, entries=[(HEADER, json.dumps(header()).encode())]))
    assert "missing golden.npy" in refusal(forge(path, without=["golden.npy"]))
    assert HEADER in refusal(forge(path, without=[HEADER]))
    assert "not listed xnorm.json" in refusal(forge(path, entries=[("xnorm.json", b"{}")]))
    listed = {name: record for name, record in header()["members"].items() if name != "labels.npy"}
    assert "not listed labels.npy" in refusal(forge(path, header(members=listed)))
    assert "labels.npy" in refusal(forge(path, header(members=listed), without=["labels.npy"]))
    assert "model.typed.onnx" in refusal(forge(path, header(graph="model.onnx")))


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"mode": stat.S_IFLNK | 0o777}, "attributes 0xa1ff0000"),
        ({"mode": stat.S_IFIFO | 0o644}, "attributes"),
        ({"mode": stat.S_IFREG | 0o4755}, "attributes"),
        ({"method": zipfile.ZIP_STORED}, "method 0"),
        ({"method": zipfile.ZIP_BZIP2}, "method 12"),
        ({"method": zipfile.ZIP_LZMA}, "method 14"),
    ],
)
def test_a_member_of_another_form(tmp_path, form, says):
    """A link, a pipe, a set-user-id program; a method of compression that a device may not have."""
    name = "golden.npy"
    path = forge(tmp_path / "a.ufovit", entries=[(entry(name, **form), MEMBERS[name])], without=[name])
    said = refusal(path)
    assert name in said
    assert says in said


def test_a_member_that_says_it_is_encrypted(bundle):
    data = bytearray(bundle.read_bytes())
    local, central = data.index(b"PK\3\4"), data.index(b"PK\1\2")
    data[local + 6] |= 1
    data[central + 8] |= 1
    bundle.write_bytes(data)
    seal(bundle)
    assert "flags 0x1" in refusal(bundle)


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path):
    """64 MiB of zeros in 64 KiB; the archive's directory tells the truth, bundle.json says 90 bytes, or the other way round."""
    path, size = tmp_path / "a.ufovit", 64 << 20
    fields = header(members={**header()["members"], "pixels.npy": {"sha256": "0" * 64, "bytes": 90}})
    forge(path, fields, [("pixels.npy", bytes(size))], without=["pixels.npy"])
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        said = refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert "pixels.npy" in said
    assert "unexpected size" in said
    data = path.read_bytes()
    lie = data.replace(struct.pack("<I", size), struct.pack("<I", 90))
    assert lie != data
    path.write_bytes(lie)
    seal(path)
    assert "pixels.npy" in refusal(path)


@pytest.mark.parametrize(
    ("size", "says"), [(1 << 40, "too large when unpacked"), (-1, "too large when unpacked"), (91, "unexpected size")]
)
def test_a_member_that_says_it_has_another_size(tmp_path, size, says):
    data = MEMBERS["pixels.npy"][:90]
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": size}
    fields = header(members={**header()["members"], "pixels.npy": record})
    assert says in refusal(forge(tmp_path / "a.ufovit", fields, [("pixels.npy", data)], without=["pixels.npy"]))


def test_a_bundle_that_would_fill_the_memory_is_neither_written_nor_read(tmp_path, monkeypatch):
    """Zeros shrink to a thousandth: what a device could not unpack is refused where it is packed, too."""
    path, members = tmp_path / "a.ufovit", {**MEMBERS, "pixels.npy": bytes(70 << 20)}
    with pytest.raises(InputError, match="too large when unpacked"):
        write_bundle(path, INFO, members)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("engines.build_folder.bundle_format._ALWAYS_UNPACKED", 80 << 20)
        write_bundle(path, INFO, members)
        assert open_bundle(path).info.members["pixels.npy"].bytes == 70 << 20
    assert "too large when unpacked" in refusal(path)


def test_a_header_that_unpacks_to_more_than_any_header(tmp_path):
    text = json.dumps(header()).encode() + b" " * (17 << 20)
    assert "unexpected size" in refusal(forge(tmp_path / "a.ufovit", text=text))


def test_a_member_whose_digest_is_another(tmp_path):
    other = random.Random(1).randbytes(len(MEMBERS["logits.npy"]))
    path = forge(tmp_path / "a.ufovit", entries=[("logits.npy", other)], without=["logits.npy"])
    said = refusal(path)
    assert "logits.npy" in said
    assert hashlib.sha256(other).hexdigest()[:16] in said
    opened = open_bundle(path)  # the archive itself is whole
    assert opened.read("labels.npy") == MEMBERS["labels.npy"]
    with pytest.raises(InputError, match="no such member"):
        opened.read("bundle.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(header(schema_version=1)), "unknown schema version"),
        (json.dumps(header(schema_version=None)), "unknown schema version"),
        (json.dumps({**header(), "comment": ""}), "unknown fields ['comment']"),
        (json.dumps(header(budget_points=None)), "missing fields ['budget_points']"),
        (json.dumps(header(budget_points="1")), "budget_points"),
        (json.dumps(header(batch=[1, 2])), "batch"),
        (json.dumps(header(random_weights=1)), "random_weights"),
        (json.dumps(header(facts={})), "facts"),
        (json.dumps(header(members=[])), "members"),
        (json.dumps(header(members={"manifest.json": {"sha256": "0" * 64, "bytes": 1.5}})), "bytes"),
        (json.dumps([header()]), HEADER),
        ("null", HEADER),
        ('"text"', HEADER),
        ("", HEADER),
        ("{", HEADER),
        ("[" * 100_000, ""),
        (b"\xff\xfe{}", HEADER),
        ('{"schema_version": ' + "9" * 5000 + "}", HEADER),
    ],
)
def test_a_header_that_is_malformed(tmp_path, text, says):
    path = forge(tmp_path / "a.ufovit", text=text if isinstance(text, bytes) else text.encode())
    assert says in refusal(path)


def test_only_a_whole_set_of_members_is_written(tmp_path):
    path = tmp_path / "a.ufovit"
    for members in (
        {name: data for name, data in MEMBERS.items() if name != "golden.npy"},
        {**MEMBERS, "../evil": b""},
        {**MEMBERS, HEADER: b"{}"},
        {**MEMBERS, "model.onnx": b""},
    ):
        with pytest.raises(InputError):
            write_bundle(path, INFO, members)
    with pytest.raises(InputError, match="no such member"):
        write_bundle(path, replace(INFO, graph="graph.onnx"), {**MEMBERS, "graph.onnx": b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("nth", [1, 4, len(NAMES) + 1])
def test_a_full_disk_leaves_the_earlier_bundle_or_none(tmp_path, monkeypatch, nth, earlier):
    path = tmp_path / "a.ufovit"
    if earlier:
        write_bundle(path, replace(INFO, model="earlier"), MEMBERS)
    before, written, write = {p.name: p.read_bytes() for p in tmp_path.iterdir()}, [], zipfile.ZipFile.writestr

    def fill(archive, made, data):
        write(archive, made, data)
        written.append(made.filename)
        if len(written) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", fill)
        with pytest.raises(MissingError, match="disk full"):
            write_bundle(path, INFO, MEMBERS)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write_bundle(path, INFO, MEMBERS)
    assert verify_bundle(path).info.model == "ufovit_tiny"


KILLED = textwrap.dedent("""
    import os, pathlib, signal, sys, zipfile
    sys.path[:0] = {roots!r}
    from test_bundle_format import INFO, MEMBERS
    from engines.build_folder.bundle_format import write_bundle
    calls = []
    def deadly(cls, name):
        real = getattr(cls, name)
        def call(*arguments):
            calls.append(name)
            if len(calls) == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)
        setattr(cls, name, call)
    deadly(zipfile.ZipFile, "writestr")
    deadly(pathlib.Path, "replace")
    write_bundle(pathlib.Path(sys.argv[2]), INFO, MEMBERS)
    print(len(calls))
""")


def test_a_kill_leaves_the_earlier_bundle_or_the_new_one(tmp_path):
    path, here = tmp_path / "a.ufovit", Path(__file__).resolve().parent
    write_bundle(path, replace(INFO, model="earlier"), MEMBERS)
    program, calls = KILLED.format(roots=[str(here), str(here.parents[2])]), len(NAMES) + 2
    for nth in (1, calls // 2, calls):
        done = subprocess.run([sys.executable, "-c", program, str(nth), str(path)], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert verify_bundle(path).info.model == "earlier"
    done = subprocess.run(
        [sys.executable, "-c", program, "0", str(path)], check=True, capture_output=True, text=True, timeout=60
    )
    assert int(done.stdout) == calls
    assert verify_bundle(path).info.model == "ufovit_tiny"
