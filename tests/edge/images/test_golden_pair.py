"""`golden.npz`: made by a build, compared with this machine's preprocessing by its users. Oracle: Pillow and the IDX file."""

import gzip
import io
from dataclasses import replace

import numpy as np
import pytest
from peak_memory import at_most_mib
from PIL import Image
from rich.console import Console
from tiny_project import build, read, sha256

from calib.errors import InputError, VerdictError
from edge.images.golden_pair import (
    GoldenPair,
    check_build_golden,
    check_golden,
    make_golden,
    parse_golden,
    shrunk,
    write_golden,
)
from edge.images.preprocess import Preprocess
from edge.inspect.describers import describe_file
from engines.build_folder.folder import BuildFolder
from engines.build_folder.step_record import StepRecord, read_record, write_record

PREPROCESS = Preprocess(32, 36, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def read_golden(path):
    return parse_golden(path.read_bytes(), path)


def photo(height=50, width=70, channels=3, seed=0):
    rough = np.random.default_rng(seed).integers(0, 256, (-(-height // 5), -(-width // 5), channels), dtype=np.uint8)
    return np.ascontiguousarray(rough.repeat(5, axis=0).repeat(5, axis=1)[:height, :width])


def by_pillow(image, preprocess):
    """What `Preprocess` says it does, done by Pillow in floats."""
    height, width = image.shape[:2]
    scale = preprocess.resize / min(height, width)
    size = [round(width * scale), round(height * scale)]
    side = preprocess.image_size
    left, top = ((s - side) // 2 for s in size)
    planes = [
        np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for c in (range(3) if image.shape[2] == 3 else (0, 0, 0))
    ]
    cut = np.stack([plane[top : top + side, left : left + side] for plane in planes])
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    return ((cut / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pair_goes_to_disk_and_back(tmp_path, channels):
    image = photo(channels=channels)
    write_golden(tmp_path / "golden.npz", make_golden(image, PREPROCESS))
    found = read_golden(tmp_path / "golden.npz")
    np.testing.assert_array_equal(found.pixels, image)
    np.testing.assert_allclose(found.tensor, by_pillow(image, PREPROCESS), atol=1e-3)
    check_golden(found, PREPROCESS, "here")
    write_golden(tmp_path / "again.npz", found)
    assert sha256(tmp_path / "again.npz") == sha256(tmp_path / "golden.npz")


def test_a_large_image_is_shrunk_before_it_is_kept():
    large = photo(400, 600)
    pair = make_golden(large, PREPROCESS)
    assert pair.pixels.shape == (72, 108, 3), "twice the shorter side after resizing"
    assert pair.pixels.dtype == np.uint8
    np.testing.assert_allclose(pair.tensor, by_pillow(pair.pixels, PREPROCESS), atol=1e-3)
    assert shrunk(photo(400, 300, 1), PREPROCESS).shape == (96, 72, 1)
    small = photo(72, 90)
    assert shrunk(small, PREPROCESS) is small


@pytest.mark.parametrize(
    "change",
    [
        lambda t: 2 * t,
        lambda t: t / 2,
        lambda t: 0 * t,
        lambda t: -t,
        lambda t: t[::-1],
        lambda t: t + np.float32(1e-3),
        lambda t: t * np.nan,
        lambda t: t[:, :31],
        lambda t: t[:, :, ::-1],
    ],
)
def test_another_tensor_stops(change):
    pair = make_golden(photo(), PREPROCESS)
    with pytest.raises(VerdictError, match=r"preprocesses images in another way\n  where: here\n  found: largest difference"):
        check_golden(GoldenPair(pair.pixels, change(pair.tensor)), PREPROCESS, "here")
    check_golden(GoldenPair(pair.pixels, pair.tensor + np.float32(1e-6)), PREPROCESS, "here")


@pytest.mark.parametrize("changes", [{"mean": (0.5, 0.4, 0.31)}, {"std": (0.26, 0.2, 0.3)}, {"resize": 32}, {"image_size": 31}])
def test_another_preprocessing_stops(changes):
    with pytest.raises(VerdictError, match="in another way"):
        check_golden(make_golden(photo(), PREPROCESS), replace(PREPROCESS, **changes), "here")


SPOILED = {
    "no archive": lambda path: path.write_bytes(b"PK\x03\x04 no"),
    "empty": lambda path: path.write_bytes(b""),
    "one array": lambda path: np.savez(path, pixels=photo()),
    "pixels of another type": lambda path: np.savez(path, pixels=photo().astype(np.float32), tensor=np.zeros((3, 4, 4), "f4")),
    "four channels": lambda path: np.savez(path, pixels=np.zeros((4, 4, 4), np.uint8), tensor=np.zeros((3, 4, 4), "f4")),
    "no pixel": lambda path: np.savez(path, pixels=np.zeros((0, 4, 3), np.uint8), tensor=np.zeros((3, 4, 4), "f4")),
    "a tensor in float64": lambda path: np.savez(path, pixels=photo(), tensor=np.zeros((3, 4, 4))),
    "complex pixels": lambda path: np.savez(path, pixels=photo().astype(complex), tensor=np.zeros((3, 4, 4), "f4")),
    "a tensor of four channels": lambda path: np.savez(path, pixels=photo(), tensor=np.zeros((4, 4, 4), "f4")),
    "a tensor of two axes": lambda path: np.savez(path, pixels=photo(), tensor=np.zeros((3, 4), "f4")),
    "objects": lambda path: np.savez(path, pixels=np.array([{}], object), tensor=np.zeros((3, 4, 4), "f4"), allow_pickle=True),
    "cut off": lambda path: path.write_bytes(_whole(path)[:200]),
}


def _whole(path):
    write_golden(path, make_golden(photo(), PREPROCESS))
    return path.read_bytes()


@pytest.mark.parametrize("what", SPOILED)
def test_a_file_that_is_no_pair_is_refused(tmp_path, what):
    SPOILED[what](tmp_path / "golden.npz")
    with pytest.raises(InputError, match=r"golden\.npz\n(.|\n)*next: ufovit build"):
        read_golden(tmp_path / "golden.npz")


def test_a_pair_of_a_line_is_refused(tmp_path):
    """Preprocessing 40,000,000 pixels in a row would take tens of gigabytes."""
    line = np.zeros((1, 40_000_000, 1), np.uint8)
    np.savez_compressed(tmp_path / "golden.npz", pixels=line, tensor=np.zeros((3, 4, 4), np.float32))
    with pytest.raises(InputError, match=r"picture too narrow[\s\S]*golden\.npz"), at_most_mib(64):
        read_golden(tmp_path / "golden.npz")


def test_a_folder_without_a_pair_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"holds no golden pair(.|\n)*build again"):
        check_build_golden(BuildFolder(tmp_path), PREPROCESS)


def test_a_build_keeps_its_first_calibration_image(built):
    data = gzip.decompress((built / "calibration/images-idx3-ubyte.gz").read_bytes())
    first = np.frombuffer(data, np.uint8, offset=16)[: 28 * 28].reshape(28, 28, 1)
    found = read_golden(built / "out/golden.npz")
    np.testing.assert_array_equal(found.pixels, first)
    preprocess = Preprocess(32, 32, (0.5,) * 3, (0.25,) * 3)
    np.testing.assert_allclose(found.tensor, by_pillow(first, preprocess), atol=1e-3)
    assert read_record(built / "out")["export"].writes["golden.npz"] == sha256(built / "out/golden.npz")
    shown = io.StringIO()
    Console(file=shown, width=100).print(describe_file(built / "out/golden.npz"))
    assert "28 x 28, grey" in shown.getvalue()


def test_the_drift_is_not_measured_where_preprocessing_differs(project, capsys, monkeypatch):
    """As on a machine with another numpy: what is made now differs from what was made when the graphs were."""
    folder = project / "out"
    pair = read_golden(folder / "golden.npz")
    write_golden(folder / "golden.npz", GoldenPair(pair.pixels, pair.tensor + np.float32(0.01)))
    steps = read_record(folder)
    written = {**steps["export"].writes, "golden.npz": sha256(folder / "golden.npz")}
    write_record(folder, {**steps, "export": StepRecord(steps["export"].reads, written)})
    before = {p.name: sha256(p) for p in folder.iterdir()}
    assert build(project) == 1
    error = capsys.readouterr().err
    assert "preprocesses images in another way" in error
    assert "golden.npz: the first calibration image" in error
    assert {p.name: sha256(p) for p in folder.iterdir()} == before, "what was refused changed nothing"
    assert read(project, "manifest.json")["model"] == "ufovit_tiny"
