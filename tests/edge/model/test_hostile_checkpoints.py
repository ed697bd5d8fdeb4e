"""Checkpoints that were made to break a reader: each is refused by a sentence with the file and the cause, in bounded memory.

Files are made of a good checkpoint by safetensors' and torch's own writers, or byte by byte; the control is that checkpoint.
"""

import contextlib
import io
import json
import os
import random
import struct
import zipfile

import numpy as np
import pytest
import torch

from calib.errors import InputError
from edge.images.preprocess import Preprocess
from edge.inspect import describe_file
from edge.model.checkpoint import load_checkpoint, save_checkpoint
from edge.model.metadata import METADATA_KEY, CheckpointInfo, read_info

NAME, LABELS = "ufovit_tiny", ("a", "b", "c", "d", "e")


@pytest.fixture
def info(tiny_size):
    return CheckpointInfo(tiny_size, LABELS, Preprocess(32, 36, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))


@pytest.fixture
def tensors(make_network):
    return {k: t for k, t in make_network(3).state_dict().items() if not k.endswith("num_batches_tracked")}


def refused(path):
    """The text of the refusal by each reader of such a file."""
    readers = [lambda: load_checkpoint(path, model=NAME)]
    readers += [lambda: read_info(path)] if path.suffix == ".safetensors" else []
    for read in readers:
        with pytest.raises(InputError) as error:
            read()
        text = str(error.value)
        assert path.name in text
        assert len(text) < 1500
        text.encode()
    return text


def with_tensor(name, make):
    return lambda tensors: tensors.__setitem__(name, make())


ODD_TENSORS = {
    "a sparse tensor": (with_tensor("head.bias", lambda: torch.ones(5).to_sparse()), "head.bias float32 sparse_coo"),
    "a compressed sparse tensor": (with_tensor("head.weight", lambda: torch.ones(5, 32).to_sparse_csr()), "sparse_csr"),
    "a one-dimensional weight": (with_tensor("head.weight", lambda: torch.ones(160)), r"mis-shaped: head.weight (160,)"),
    "a scalar": (with_tensor("head.bias", lambda: torch.tensor(1.0)), "mis-shaped: head.bias ()"),
    "integers": (with_tensor("head.bias", lambda: torch.ones(5, dtype=torch.int64)), "head.bias int64"),
    "complex numbers": (with_tensor("head.bias", lambda: torch.ones(5, dtype=torch.complex64)), "head.bias complex64"),
    "8-bit floats": (with_tensor("head.bias", lambda: torch.ones(5).to(torch.float8_e4m3fn)), "head.bias float8_e4m3fn"),
    "a quantized tensor": (
        with_tensor("head.bias", lambda: torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8)),
        "head.bias qint8",
    ),
    "a tensor without data": (with_tensor("head.bias", lambda: torch.empty(5, device="meta")), "not dense"),
    "2**40 values of one number": (
        with_tensor("head.bias", lambda: torch.ones(1).expand(2**40)), "mis-shaped: head.bias (1099511627776,)",
    ),
    "beyond FP32": (with_tensor("head.bias", lambda: torch.full((5,), 1e300, dtype=torch.float64)), "not finite: head.bias"),
    "a number as a name": (with_tensor(7, lambda: torch.ones(1)), "names that are not text"),
    "half of a surrogate pair as a name": (with_tensor("\ud800", lambda: torch.ones(1)), "names that are not text"),
    "a tuple as a name": (with_tensor((1, "a"), lambda: torch.ones(1)), "names that are not text"),
    "a long name": (with_tensor("x" * 10**6, lambda: torch.ones(1)), "unexpected: xxx"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch calls its own formats unfinished, or outdated
@pytest.mark.parametrize("name", ODD_TENSORS)
def test_tensors_that_are_not_plain_numbers(info, tensors, tmp_path, name):
    spoil, says = ODD_TENSORS[name]
    spoil(tensors)
    path = tmp_path / "odd.pth"
    torch.save({METADATA_KEY: info.as_json(), "state_dict": tensors}, path)
    assert says in refused(path)


def test_plain_numbers_of_every_width_are_read(info, tensors, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        path = tmp_path / "good.pth"
        torch.save({METADATA_KEY: info.as_json(), "state_dict": {k: t.to(dtype) for k, t in tensors.items()}}, path)
        network, _ = load_checkpoint(path, model=NAME)
        assert torch.equal(network.head.weight, tensors["head.weight"].to(dtype).float())


def circle():
    values = []
    values.append(values)
    return values


def doubled(times=60):
    """A list of two times the same list, and so on: 2**times values in a few bytes of pickle."""
    values = ["x"]
    for _ in range(times):
        values = [values, values]
    return values


ODD_METADATA = {
    "a circle": {"training": {"x": circle()}},
    "a list of itself": {"training": {"x": doubled()}},
    "a tensor": {"training": {"x": torch.ones(2)}},
    "bytes": {"labels": [b"a", "b", "c", "d", "e"]},
    "NaN": {"training": {"x": float("nan")}},
    "half of a surrogate pair": {"labels": ["\ud800", "b", "c", "d", "e"]},
    "labels of lists": {"labels": [["a"], "b", "c", "d", "e"]},
    "an image size of 2**40": {"image_size": 2**40},
    "an image size of 10**30": {"image_size": 10**30},
    "a negative image size": {"image_size": -32},
    "no classes": {"classes": 0, "labels": []},
    "a huge resize": {"preprocess": {"image_size": 32, "resize": 2**40, "mean": [0, 0, 0], "std": [1, 1, 1]}},
    "a deviation of 1e-300": {"preprocess": {"image_size": 32, "resize": 36, "mean": [0, 0, 0], "std": [1, 1, 1e-300]}},
    "a mean of 1e300": {"preprocess": {"image_size": 32, "resize": 36, "mean": [1e300, 0, 0], "std": [1, 1, 1]}},
    "no object": None,
}


@pytest.mark.parametrize("name", ODD_METADATA)
def test_metadata_of_a_pickle(info, tensors, tmp_path, name):
    change = ODD_METADATA[name]
    path = tmp_path / "odd.pth"
    torch.save({METADATA_KEY: change and info.as_json() | change, "state_dict": tensors}, path)
    refused(path)


def safetensors_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(shape, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


def headers(info):
    """Name -> (header, data) of a safetensors file that is refused."""
    metadata = {METADATA_KEY: json.dumps(info.as_json())}
    deep = {METADATA_KEY: '{"a":' * 50_000 + "1" + "}" * 50_000}
    return {
        "a shape of 2**40": ({"__metadata__": metadata, "head.bias": entry([2**40], 2**42)}, b"\0" * 20),
        "a shape that overflows": ({"__metadata__": metadata, "head.bias": entry([2**40, 2**40], 20)}, b"\0" * 20),
        "a negative shape": ({"__metadata__": metadata, "head.bias": entry([-5], 20)}, b"\0" * 20),
        "nothing, in 2**40 columns": ({"__metadata__": metadata, "head.bias": entry([0, 2**40], 0)}, b""),
        "types of four bits": ({"__metadata__": metadata, "head.bias": entry([10], 5, "F4")}, b"\0" * 5),
        "types of eight bits": ({"__metadata__": metadata, "head.bias": entry([5], 5, "F8_E8M0")}, b"\0" * 5),
        "an unknown type": ({"__metadata__": metadata, "head.bias": entry([5], 5, "Q7")}, b"\0" * 5),
        "deep metadata": ({"__metadata__": deep}, b""),
        "metadata of numbers": ({"__metadata__": {METADATA_KEY: 3}}, b""),
        "metadata with a huge number": ({"__metadata__": {METADATA_KEY: '{"schema_version": 1' + "0" * 5000 + "}"}}, b""),
        "metadata with NaN": ({"__metadata__": {METADATA_KEY: '{"schema_version": NaN}'}}, b""),
        "a deep header": (b'{"a":' * 100_000, b""),
        "a header of 17 MiB": (b'{"__metadata__": {"a": "' + b"x" * (17 << 20) + b'"}}', b""),
    }


def test_headers_of_safetensors(info, tmp_path):
    path = tmp_path / "odd.safetensors"
    for name, (header, data) in headers(info).items():
        safetensors_file(path, header, data)
        with pytest.raises(InputError) as error:
            load_checkpoint(path, model=NAME)
        assert path.name in str(error.value), name
        assert len(str(error.value)) < 1500, name
        with contextlib.suppress(InputError):
            describe_file(path)  # which may show it


def test_a_header_that_claims_more_than_the_file(tmp_path):
    path = tmp_path / "odd.safetensors"
    for claimed in (2**63, 2**64 - 1, 1 << 40, 100 << 20):
        path.write_bytes(struct.pack("<Q", claimed) + b"{}")
        assert "header" in refused(path)


def test_other_files_are_named(tmp_path):
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"odd{suffix}"
        for content, says in (
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
            (b"<!doctype html><html></html>", "an HTML page"),
            (bytes(1000), "nothing but blanks or zeros"),
        ):
            path.write_bytes(content)
            assert says in refused(path)


def test_what_is_not_a_file(tmp_path):
    for suffix in (".safetensors", ".pth"):
        for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
            path = tmp_path / f"{getattr(make, '__name__', 'x').strip('<>')}{suffix}"
            make(path)
            assert "not a regular file" in refused(path)


def test_an_archive_that_would_expand(info, tensors, tmp_path):
    """torch stores without compression; the same archive with zeros deflated unpacks to a thousand times its size."""
    path, stored = tmp_path / "odd.pth", io.BytesIO()
    torch.save({METADATA_KEY: info.as_json(), "state_dict": tensors | {"x": torch.zeros(1 << 22)}}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
    assert path.stat().st_size < 1 << 20
    assert "compressed archive" in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_bytes_changed_at_random_are_read_or_refused(info, make_network, tensors, tmp_path, suffix):
    path, rng = tmp_path / f"any{suffix}", random.Random(11)
    if suffix == ".pth":
        torch.save({METADATA_KEY: info.as_json(), "state_dict": tensors}, path)
    else:
        save_checkpoint(make_network(3), info, path)
    good = path.read_bytes()
    header = [i for i in range(len(good)) if i < 12_000 or i > len(good) - 6000]
    outcomes = set()
    for _ in range(40):
        spoilt = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            spoilt[rng.choice(header)] = rng.choice((0, 1, 34, 92, 127, 255, rng.randrange(256)))
        path.write_bytes(spoilt)
        try:
            load_checkpoint(path, model=NAME)
            outcomes.add("read")
        except InputError as error:
            str(error).encode()
            outcomes.add("refused")
    path.write_bytes(good)
    loaded, _ = load_checkpoint(path, model=NAME)
    assert np.isfinite(loaded.head.weight.detach().numpy()).all()
    assert "refused" in outcomes
