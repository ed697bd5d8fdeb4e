"""The tiny project built for RTX, and devices that build from its bundle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundle_contents import GRAPH, Injected, pack
from PIL import Image
from run_once import make_once
from tiny_network import TINY
from tiny_project import LABELS, build, make_project

from calib.errors import MissingError
from edge.model.sizes import SIZES
from edge.pipeline.placement_option import STEM_LAYERS


@pytest.fixture(scope="session")
def rtx(tmp_path_factory):
    """A project with a finished INT8 build for `rtx`, batch 1 to 8, and its bundle of 24 images. Copy it before changing it.

    The network of seed 4 sees ants and eels in its images, two to one, so that wrong answers show.
    """
    import torch

    from edge.model.checkpoint import random_network

    torch.set_num_threads(1)

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(SIZES, TINY.name, TINY)
            make_project(folder, random_network(TINY, 4), TINY)
            stem = [f"--keep-float={pattern}" for pattern in STEM_LAYERS]  # 24 images decide this one
            options = ("--batch", "1,2,8", "--max-drop", "15", *stem)
            assert build(folder, *options, target="rtx", out="rtx") == 0
            assert pack(folder) == 0

    folder = make_once(tmp_path_factory, "rtx-bundle", make)
    assert np.bincount(np.load(folder / "rtx/logits.npz")["labels"]).max() < 60
    return folder


@pytest.fixture
def photos(tmp_path):
    """Colour pictures larger and smaller than twice what the network sees, a folder per class."""
    rng, folder = np.random.default_rng(3), tmp_path / "photos"
    sizes = [(200, 150), (64, 64), (65, 300), (40, 31), (500, 129)]
    for (height, width), label in zip(sizes, LABELS, strict=True):
        blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        (folder / label).mkdir(parents=True)
        Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]).save(folder / label / "a.png")
    return folder


@pytest.fixture
def on_a_gpu(project, monkeypatch):
    """on_a_gpu(change): engines "run": their graph answers on the CPU, and `change` is made to its logits."""

    def become(change=lambda logits: logits):
        from edge.runtime.ort_runner import emulated_runner

        graph = emulated_runner(onnx.load(project / "rtx" / GRAPH), Path(GRAPH))
        runner = Injected(lambda images: (change(graph(images)[0]),))
        monkeypatch.setattr("edge.pipeline.build_from_bundle.open_engine", lambda _folder: runner)
        return runner

    return become


@pytest.fixture
def without_a_gpu(monkeypatch):
    def refuse(*_arguments, **_options):
        raise MissingError("no CUDA device can be used")

    monkeypatch.setattr("edge.runtime.engine_runner.open_device", refuse)
