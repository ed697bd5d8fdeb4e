"""Which files are decoded is decided by one list of formats, and how large they may be before they are decoded."""

import contextlib
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from peak_memory import at_most_mib
from PIL import EpsImagePlugin, Image

from calib.errors import InputError
from edge.camera.frame import BadFrame
from edge.camera.sources.registry import open_source
from edge.images.picture_file import FORMATS, IMAGE_SUFFIXES, decode
from edge.images.preprocess import MAX_PIXELS

ROOT = Path(__file__).parents[3]
RGB = np.random.default_rng(0).integers(0, 256, size=(12, 9, 3), dtype=np.uint8)


def png(height, width, data=b""):
    """The header of a PNG of any size, and as much of its pixels as is given."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def write_foreign(path, kind):
    """A picture of another format, under the name of a JPEG."""
    if kind == "FLI":
        path.write_bytes(struct.pack("<IHHHHHHI", 256, 0xAF11, 1, 9, 12, 8, 3, 0).ljust(256, b"\0"))
    else:
        image = Image.fromarray(RGB)
        (image.convert("L") if kind == "XBM" else image).save(path, format=kind)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "FLI", "ICO", "SGI", "DDS", "ICNS"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_other_formats_are_refused_by_name_whatever_the_file_is_called(tmp_path, kind, suffix):
    path = tmp_path / f"photo{suffix}"
    write_foreign(path, kind)
    with pytest.raises(InputError, match=rf"cannot be decoded[\s\S]*photo{suffix}[\s\S]*{kind}[\s\S]*allowed: JPEG, PNG, "):
        decode(path)


def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """A Ghostscript that leaves a mark. The control: Pillow alone starts it."""
    marker = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(RGB).save(folder / "photo.jpg", format="EPS")
    with pytest.raises(InputError, match="a file of the format EPS"):
        decode(folder / "photo.jpg")
    source = open_source(str(folder))
    with pytest.raises(BadFrame, match="a file of the format EPS"):
        source.read()
    assert not marker.exists()
    with Image.open(folder / "photo.jpg") as image, contextlib.suppress(Exception):
        image.load()
    assert marker.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_formats_are_told_apart_by_content(tmp_path, kind):
    """Every suffix of the list can be read, and every format under the name of any other."""
    for suffix in IMAGE_SUFFIXES:
        path = tmp_path / f"photo{suffix}"
        Image.fromarray(RGB).save(path, format=kind)
        np.testing.assert_allclose(decode(path).shape, RGB.shape)


def test_suffixes_are_those_of_the_formats():
    Image.init()
    for kind, suffixes in FORMATS.items():
        assert {Image.EXTENSION[suffix] for suffix in suffixes} == {kind}


def test_no_picture_is_opened_without_the_list():
    files = [file for room in ("calib", "engines", "edge", "scripts") for file in (ROOT / room).rglob("*.py")]
    opened = {str(f.relative_to(ROOT)): re.findall(r"Image\.open\(.*|\bimread\(.*|imdecode\(.*", f.read_text()) for f in files}
    calls = [(file, call) for file, found in opened.items() for call in found]
    assert [file for file, _ in calls if not file.startswith("scripts/")] == ["edge/images/picture_file.py"]
    assert all(re.search(r"formats=(tuple\(FORMATS\)|\(\"PNG\",\))", call) for _, call in calls)


def test_the_first_picture_of_several_is_read(tmp_path):
    frames = [Image.fromarray(np.full((6, 5), value, np.uint8)) for value in (10, 200)]
    for name in ("a.gif", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert decode(tmp_path / name)[0, 0, 0] == 10


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (9000, 9000, r"picture too large[\s\S]*9000x9000 pixels[\s\S]*at most 67,108,864"),
        (2**31 - 1, 2**31 - 1, "cannot be decoded"),
        (3, 4000, r"picture too narrow[\s\S]*4000x3 pixels[\s\S]*16 times"),
        (9000, 1, r"picture too narrow[\s\S]*1x9000"),
        (2, 33, "picture too narrow"),
    ],
)
def test_the_size_is_judged_before_the_pixels(tmp_path, height, width, message):
    path = tmp_path / "photo.png"
    path.write_bytes(png(height, width))
    with pytest.raises(InputError, match=message) as raised, at_most_mib(4):
        decode(path)
    assert "photo.png" in str(raised.value)


def test_a_picture_of_the_largest_size_is_read(tmp_path):
    path = tmp_path / "photo.png"
    side = int(MAX_PIXELS**0.5)
    path.write_bytes(png(side, side, bytes(side * (side + 1))))
    with at_most_mib(300):
        assert decode(path).shape == (side, side, 1)


def test_a_damaged_exif_block_takes_no_memory(tmp_path):
    """65,535 entries, each of which refers to all of the block."""
    path, length = tmp_path / "photo.png", 2**21
    entries = b"".join(struct.pack("<HHII", tag, 7, length - 8, 8) for tag in range(2**16 - 1))
    block = (b"II*\0\x08\0\0\0\xff\xff" + entries).ljust(length, b"\0")
    Image.fromarray(RGB).save(path, exif=block)
    with pytest.raises(InputError, match=r"photo\.png[\s\S]*EXIF"), at_most_mib(16):
        decode(path)


def tiff(strips, order):
    """A TIFF file of 16 x 16 pixels that states any number of strips."""
    letter = {"<": b"II", ">": b"MM"}[order]
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
    entries = [struct.pack(order + "HHII", t, 4, strips if t in (273, 279) and strips > 1 else 1, v) for t, v in tags.items()]
    magic = letter + struct.pack(order + "HI", 42, 8)
    return magic + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4 + 8 * strips)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_file_of_millions_of_strips_takes_no_memory(tmp_path, order):
    path = tmp_path / "photo.png"
    path.write_bytes(tiff(2**20 + 1, order))
    with pytest.raises(InputError, match=r"photo\.png[\s\S]*1,048,577 strips"), at_most_mib(4):
        decode(path)
    path.write_bytes(tiff(1, order)[:126].ljust(300, b"\7"))
    assert decode(path).shape == (16, 16, 1)


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    """The last scan again and again: 700 bytes each, and a pass over all pixels."""
    path = tmp_path / "photo.jpg"
    Image.fromarray(RGB).save(path, progressive=True)
    assert decode(path).shape == RGB.shape
    whole = path.read_bytes()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    path.write_bytes(whole[:-2] + 50 * last + whole[-2:])
    assert decode(path).shape == RGB.shape
    path.write_bytes(whole[:-2] + 200 * last + whole[-2:])
    with pytest.raises(InputError, match=r"photo\.jpg[\s\S]*JPEG file of 2\d\d scans"):
        decode(path)


@pytest.mark.parametrize("start", [b"P5\n5000 5000\n200\n", b"P2\n5000 5000\n255\n", b"P6\n3000 3000\n60000\n"])
def test_what_takes_minutes_is_refused(tmp_path, start):
    path = tmp_path / "photo.ppm"
    path.write_bytes(start + b"7 " * 100)
    with pytest.raises(InputError, match=r"photo\.ppm[\s\S]*unusual kind"):
        decode(path)
    path.write_bytes(re.sub(rb"\d000", b"10", start) + b"7 " * 300)
    assert decode(path).shape[:2] == (10, 10)


FLOATS = np.linspace(0, 1, 108, dtype=np.float32).reshape(12, 9)


def test_float_pixels_from_0_to_1_are_scaled(tmp_path):
    Image.fromarray(FLOATS).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(decode(tmp_path / "f.tif")[:, :, 0], np.rint(FLOATS * 255))
    Image.fromarray(FLOATS * 0).save(tmp_path / "black.tif")
    assert decode(tmp_path / "black.tif").max() == 0


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (FLOATS * 255, "float32 pixels from 0 to 255"),
        (FLOATS - 0.5, "float32 pixels from -0.5 to 0.5"),
        (FLOATS * np.float32(np.nan), "float32 pixels from nan to nan"),
        (np.arange(108, dtype=np.int32).reshape(12, 9), "int32 pixels from 0 to 107"),
        (np.arange(108, dtype=np.int32).reshape(12, 9) << 20, "int32 pixels from 0 to 1.12198e\\+08"),
    ],
)
def test_pixels_whose_white_is_not_known_are_refused_with_their_range(tmp_path, pixels, found):
    """Float pixels became 0 and 1 of 255, wide integers 0 or 255: pictures all black, all white."""
    Image.fromarray(pixels).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match=rf"range of the pixels[\s\S]*f\.tif[\s\S]*{found}[\s\S]*floats from 0 to 1"):
        decode(tmp_path / "f.tif")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", r"Git LFS pointer[\s\S]*next: git lfs pull"),
        (b"<!DOCTYPE html>\n<html></html>", r"HTML page[\s\S]*next: repair, convert or remove"),
        (b"", r"an empty file[\s\S]*next: repair, convert or remove"),
    ],
)
def test_what_stands_in_the_place_of_a_picture_is_named(tmp_path, data, message):
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(InputError, match=rf"photo\.jpg[\s\S]*{message}"):
        decode(tmp_path / "photo.jpg")
