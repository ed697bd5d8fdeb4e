"""A float graph with its images, and the command that calibrates it."""

import numpy as np
import pytest
from calibrate_files import SIZE, logits, network
from PIL import Image

from edge.cli import run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`net.onnx`, 96 `images.npy`, and 200 `test.npy` with the network's own answers as `labels.npy`."""
    folder = tmp_path_factory.mktemp("world")
    network(folder / "net.onnx")
    rng = np.random.default_rng(1)
    for name, count in (("images", 96), ("test", 200)):
        np.save(folder / f"{name}.npy", rng.normal(size=(count, 3, SIZE, SIZE)).astype(np.float32))
    np.save(folder / "labels.npy", logits(folder / "net.onnx", np.load(folder / "test.npy")).argmax(1))
    return folder


@pytest.fixture
def calibrate(world, tmp_path):
    """calibrate(*options, graph=, images=, out=) -> exit code; 64 of the 96 images calibrate unless told otherwise."""

    def call(*options, graph=world / "net.onnx", images=world / "images.npy", out=tmp_path / "out", effort="fast"):
        given = [] if images is None else ["--images", images]
        chosen = [] if "--count" in options else ["--count", 64]
        return run(["calibrate", *map(str, [graph, *given, *chosen, "--out", out, "--effort", effort, *options])])

    return call


@pytest.fixture(scope="module")
def pixels():
    smooth = np.random.default_rng(2).integers(0, 256, (80, 4, 4, 3)).astype(np.uint8)
    return smooth.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)


@pytest.fixture
def folder(pixels, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"pictures/{i:03}.png")
    return tmp_path / "pictures"


@pytest.fixture
def stored(calibrate, tmp_path, capsys):
    assert calibrate(effort="best", out=tmp_path / "stored") == 0
    capsys.readouterr()
    return tmp_path / "stored"
