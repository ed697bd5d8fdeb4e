"""Archives of arrays: what np.savez writes comes back, and what only claims to be one is refused before it takes memory."""

import io
import zipfile

import numpy as np
import pytest
from peak_memory import at_most_mib

from calib.errors import ArtifactError
from edge.images.npz import parse_npz
from edge.tasks.classification.logits import Logits, parse_logits, write_logits

RNG = np.random.default_rng(0)
GOOD = {"a": RNG.standard_normal((3, 4)).astype(np.float32), "b": np.arange(5)}
MIB = 1 << 20


def parse(data, names=("a", "b"), optional=""):
    return parse_npz(data, names, "x.npz", refusal="no such arrays", remake="make it again", optional=optional)


def npy(header, values=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + values


def header(shape, descr="'|u1'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def archive(members, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_comes_back(save):
    arrays = {
        **GOOD,
        "fortran": np.asfortranarray(GOOD["a"]),
        "reversed": GOOD["a"][::-1].T,
        "big": GOOD["a"].astype(">f4"),
        "one": np.float64(3.5),
        "none": np.zeros((0, 4), np.uint8),
        "flags": np.array([True, False]),
    }
    buffer = io.BytesIO()
    save(buffer, **arrays)
    found = parse(buffer.getvalue(), tuple(arrays))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array)
    assert list(parse(buffer.getvalue(), optional="one")) == ["a", "b", "one"]
    assert list(parse(buffer.getvalue(), optional="two")) == ["a", "b"]


HOSTILE = {
    "states more than it holds": {"a": npy(header((1 << 40,)), bytes(64))},
    "states more than a number": {"a": npy(header((10**30,)), bytes(64))},
    "states less than it holds": {"a": npy(header((10,)), bytes(64))},
    "a negative side": {"a": npy(header((-8, -8)), bytes(64))},
    "objects": {"a": npy(header((8,), "'|O'"), bytes(64))},
    "complex": {"a": npy(header((8,), "'<c8'"), bytes(64))},
    "texts": {"a": npy(header((16,), "'<U1'"), bytes(64))},
    "a record": {"a": npy(header((16,), "[('x', '<f4')]"), bytes(64))},
    "one element of a gigabyte": {"a": npy(header((), "'V1073741824'"), bytes(64))},
    "nested": {"a": npy(header("(" * 3000 + ")" * 3000))},
    "an unfinished text": {"a": npy(header("('''"))},
    "a long header": {"a": npy(header((64,)) + " " * 60_000, bytes(64))},
    "no array": {"a": b"text"},
    "nothing": {"a": b""},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_members_are_refused(what):
    with (
        pytest.raises(ArtifactError, match=r"no such arrays\n  where: x\.npz\n  found: .+\n  next: make it again"),
        at_most_mib(8),
    ):
        parse(archive(HOSTILE[what]), ("a",))
    assert parse(archive({"a": npy(header((64,)), bytes(64))}), ("a",))["a"].shape == (64,)


def test_a_bomb_is_refused_before_it_is_unpacked():
    """300 MiB of zeros in 300 kB. A small archive may shrink as much: a black picture does."""
    size = 300 * MIB
    data = archive({"a": npy(header((size,)), bytes(size))})
    assert len(data) < MIB
    with pytest.raises(ArtifactError, match=r"found: 314572\d* bytes of arrays in an archive of "), at_most_mib(8):
        parse(data, ("a",))
    assert parse(archive({"a": npy(header((20 * MIB,)), bytes(20 * MIB))}), ("a",))["a"].size == 20 * MIB


def test_a_size_that_the_archive_understates_is_noticed():
    data = archive({"a": npy(header((5000,)), bytes(5000))})
    size = len(npy(header((5000,)))) + 5000
    low = data.replace(size.to_bytes(4, "little"), (size - 4000).to_bytes(4, "little"))
    assert low != data
    with pytest.raises(ArtifactError, match="no such arrays"):
        parse(low, ("a",))


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_only_what_numpy_writes_is_unpacked(compression):
    with pytest.raises(ArtifactError, match="compression"):
        parse(archive({"a": npy(header((64,)), bytes(64))}, compression), ("a",))


def test_damage_at_any_byte_is_refused_or_harmless():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **GOOD)
    whole = buffer.getvalue()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        try:
            found = parse(bytes(damaged))
        except ArtifactError:
            continue
        for name, array in GOOD.items():
            np.testing.assert_array_equal(found[name], array)
    for length in range(0, len(whole), 7):
        with pytest.raises(ArtifactError, match="no such arrays"):
            parse(whole[:length])


LOGITS = {
    "reference": RNG.standard_normal((4, 3)).astype(np.float32),
    "engine": RNG.standard_normal((4, 3)).astype(np.float32),
    "labels": np.array([0, 2, 1, 1]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": LOGITS["reference"].astype(complex)}, r"cannot be read[\s\S]*complex128"),
        ({"engine": np.full((4, 3), None)}, r"cannot be read[\s\S]*object"),
        ({"engine": LOGITS["engine"].astype(np.float64)}, r"not logits and labels[\s\S]*engine float64[\s\S]*float32"),
        ({"labels": np.array([0.0, 2.0, 1.0, 1.0])}, r"not logits and labels[\s\S]*labels float64[\s\S]*int64"),
        ({"labels": np.array([0, 3, 1, 1])}, r"out of range[\s\S]*classes 0 to 3[\s\S]*0 to 2"),
        ({"labels": np.array([0, -1, 1, 1])}, r"out of range[\s\S]*classes -1 to 1"),
        ({"labels": np.array([[0, 2, 1, 1]])}, "do not match"),
        ({"engine": LOGITS["engine"].T}, "do not match"),
        ({"reference": LOGITS["reference"][..., None], "engine": LOGITS["engine"][..., None]}, "do not match"),
        ({"reference": np.zeros((4, 0), "f4"), "engine": np.zeros((4, 0), "f4")}, "do not match"),
        ({name: array[:0] for name, array in LOGITS.items()}, "do not match"),
    ],
)
def test_logits_of_other_axes_and_types_are_refused(tmp_path, change, message):
    path = tmp_path / "logits.npz"
    write_logits(path, Logits(**LOGITS))
    np.testing.assert_array_equal(parse_logits(path.read_bytes(), path).labels, LOGITS["labels"])
    np.savez(path, **(LOGITS | change))
    with pytest.raises(ArtifactError, match=rf"{message}[\s\S]*next: ufovit build") as raised:
        parse_logits(path.read_bytes(), path)
    assert f"where: {path}" in str(raised.value)
