"""IDX files written byte by byte must come back as the same arrays, or be refused by name."""

import gzip
import math
import os
import struct

import numpy as np
import pytest
from peak_memory import at_most_mib

from calib.errors import InputError
from edge.images.idx import read_idx
from edge.images.labelled_images import open_images, open_unlabelled

LABELS = ("T-shirt/top", "Trouser", "Ankle boot")
RNG = np.random.default_rng(0)


def idx_bytes(values):
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    """make(packed=gzip or not, images=, labels=) -> a folder with a pair of IDX files."""

    def make(suffix="", images=None, labels=None):
        images = RNG.integers(0, 256, size=(4, 6, 5), dtype=np.uint8) if images is None else images
        labels = np.array([0, 2, 1, 1], np.uint8) if labels is None else labels
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(values)
            (tmp_path / f"t-{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
        return tmp_path, images, labels

    return make


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_idx(idx_folder, suffix, by):
    folder, images, labels = idx_folder(suffix)
    found = open_images(folder if by == "folder" else folder / f"t-images-idx3-ubyte{suffix}", LABELS)
    assert len(found) == 4
    assert found.labels.tolist() == labels.tolist()
    for i in range(4):
        np.testing.assert_array_equal(found.pixels(i), images[i][:, :, None])
    assert found.names[2] == f"t-images-idx3-ubyte{suffix}[2]"


def test_idx_digest_is_of_the_content(idx_folder):
    folder, images, labels = idx_folder()
    base = open_images(folder, LABELS).sha256
    packed = open_images(idx_folder(".gz", images, labels)[0] / "t-images-idx3-ubyte.gz", LABELS).sha256
    assert packed == base
    other_pixel, other_label = images.copy(), labels.copy()
    other_pixel[3, 5, 4] ^= 1
    other_label[0] = 1
    path = "t-images-idx3-ubyte"
    assert open_images(idx_folder("", other_pixel, labels)[0] / path, LABELS).sha256 != base
    assert open_images(idx_folder("", images, other_label)[0] / path, LABELS).sha256 != base


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_idx_at_any_length(idx_folder, suffix):
    folder, _, _ = idx_folder(suffix)
    path = folder / f"t-images-idx3-ubyte{suffix}"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=path.name):
            read_idx(path)


def test_damaged_gzip(idx_folder):
    folder, _, _ = idx_folder(".gz")
    path = folder / "t-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for position in range(10, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(InputError, match=path.name):
            read_idx(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\x0d\x03" + b"\0" * 12,  # floats
        b"\x89PNG\r\n",
        struct.pack(">BBBBI", 0, 0, 8, 1, 2**32 - 1) + b"x",
        struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"x",  # a product beyond 64 bits
        struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 4),  # a product that is 0 modulo 2^64
        b"\0\0\x08\x03" + struct.pack(">3I", 1, 1, 1) + b"too many",
    ],
)
def test_what_is_no_idx_file(tmp_path, data):
    path = tmp_path / "t-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(InputError, match=path.name):
        read_idx(path)


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((2**20, 128, 128), 0, r"IDX file too large[\s\S]*\(1048576, 128, 128\)[\s\S]*1024 MiB[\s\S]*next: gunzip"),
        ((2**20, 32, 32), 100, r"truncated IDX file"),
        ((2, 2, 2), 2**26, r"file cannot be read[\s\S]*more than 8 bytes"),
        ((2**32 - 1, 0, 0), 0, r"IDX file too large[\s\S]*2,097,152 images"),
        ((2**22, 1, 1), 2**22, r"IDX file too large"),
        ((1, 1, 9000), 9000, r"picture too narrow[\s\S]*9000x1"),
        ((1,) * 200, 1, r"200 axes"),
        ((), 1, r"0 axes"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_a_file_states_takes_no_memory(tmp_path, suffix, shape, count, message):
    path = tmp_path / f"t-images-idx3-ubyte{suffix}"
    data = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + b"\0" * count
    path.write_bytes(gzip.compress(data) if suffix else data)
    expected = message if suffix or count == math.prod(shape) else path.name
    with pytest.raises(InputError, match=expected), at_most_mib(16):
        open_unlabelled(path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t-images-idx3-ubyte")
    with pytest.raises(InputError, match="not a regular file"):
        read_idx(tmp_path / "t-images-idx3-ubyte")


def test_idx_pairs_that_do_not_match(idx_folder):
    folder, images, _ = idx_folder(labels=np.array([0, 1, 2], np.uint8))
    with pytest.raises(InputError, match=r"do not match[\s\S]*\(4, 6, 5\) and \(3,\)"):
        open_images(folder, LABELS)
    idx_folder(labels=np.array([0, 1, 3, 2], np.uint8))
    with pytest.raises(InputError, match=r"labels do not match the network[\s\S]*class 3[\s\S]*0 to 2"):
        open_images(folder, LABELS)
    idx_folder(images=images[:0], labels=np.zeros(0, np.uint8))
    with pytest.raises(InputError, match=r"not an IDX file of images[\s\S]*\(0, 6, 5\)"):
        open_images(folder, LABELS)
    (folder / "t-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="no label file beside the images"):
        open_images(folder, LABELS)
    (folder / "u-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(InputError, match=r"several IDX image files[\s\S]*t-images-idx3-ubyte, u-images-idx3-ubyte"):
        open_images(folder, LABELS)
