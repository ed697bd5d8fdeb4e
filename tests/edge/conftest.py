"""A small network with every parameter away from its initial value, and its exported graph."""

import hashlib
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from run_once import make_once
from tiny_network import TINY
from tiny_project import build, command, make_project

from edge.cli import run
from edge.model.sizes import SIZES


@pytest.fixture(scope="session")
def make_network():
    """make_network(seed, **changes of the shape) -> a network in eval mode whose foldings all have something to do."""
    import torch

    from edge.model.checkpoint import random_network

    torch.set_num_threads(1)

    def make(seed=0, **changes):
        network = random_network(replace(TINY, **changes), seed)
        generator = torch.Generator().manual_seed(seed + 1)

        def draw(tensor, low, high):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith(("gamma", "running_var", "gain")) or (".norm" in name and name.endswith("weight")):
                    draw(tensor, 0.5, 2.0)
                elif name.endswith(("bias", "running_mean")):
                    draw(tensor, -0.5, 0.5)
                elif name.endswith("weight") and tensor.ndim == 2:
                    tensor.mul_(8)  # outputs as large as the biases: logits that depend on the image
        return network

    return make


@pytest.fixture(scope="session", autouse=True)
def exported_once(tmp_path_factory):
    """Builds export equal networks once in a test run: torch's exporter and onnxsim take most of the time of a tiny build.

    Tests of either import it from its module and get the original.
    """
    import onnx

    from edge.model import export

    to_onnx, simplify = export.to_onnx, export.simplify

    def once(kind, content, make):
        return make_once(tmp_path_factory, f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}", make)

    def to_onnx_once(network):
        weights = ((name, tensor.numpy().tobytes()) for name, tensor in network.state_dict().items())
        make = lambda folder: onnx.save(to_onnx(network), folder / "model.onnx")  # noqa: E731
        return onnx.load(once("exported", repr((network.cfg, *weights)).encode(), make) / "model.onnx")

    def simplify_once(proto, images):
        def make(folder):
            graph, record = simplify(proto, images)
            onnx.save(graph, folder / "model.onnx")
            (folder / "record").write_bytes(pickle.dumps(record))

        folder = once("simplified", proto.SerializeToString(deterministic=True), make)
        return onnx.load(folder / "model.onnx"), pickle.loads((folder / "record").read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "to_onnx", to_onnx_once)
        patch.setattr(export, "simplify", simplify_once)
        yield


@pytest.fixture
def tiny_size(monkeypatch):
    """The tiny shape as a known size, so that its checkpoints can be read."""
    monkeypatch.setitem(SIZES, TINY.name, TINY)
    return TINY


@pytest.fixture(scope="session")
def tiny_images():
    """Preprocessed images (6, 3, 32, 32)."""
    return np.random.default_rng(5).normal(size=(6, 3, TINY.image_size, TINY.image_size)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_graph(make_network):
    """The exporter's graph of the folded network of seed 0, before simplification. Copy it before changing it."""
    from edge.model import export
    from edge.model.export_foldings import fold

    return export.to_onnx(fold(make_network(0)))


@pytest.fixture(scope="session")
def built(tmp_path_factory, make_network):
    """A project with a finished INT8 build for the CPU; copy it before changing it."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(SIZES, TINY.name, TINY)
            assert build(make_project(folder, make_network(0), TINY)) == 0

    return make_once(tmp_path_factory, "tiny-project", make)


@pytest.fixture(scope="session")
def rtx_built(built, tmp_path_factory):
    """rtx_built(precision) -> the finished build of the same project for `rtx`, batch 1 to 4; copy it before changing it."""

    def finished(precision):
        pytest.importorskip("tensorrt_rtx", reason="pip install 'ufovit-edge[rtx]'", exc_type=ImportError)
        options = {
            "precision": precision,
            "target": "rtx",
            "batch": "1,2,4",
            "int8_floor": 0.5 if precision == "int8" else None,
        }

        def make(folder):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(SIZES, TINY.name, TINY)
                assert run(command(built, out=folder / "build", **options)) == 0

        return make_once(tmp_path_factory, f"tiny-rtx-{precision}", make) / "build"

    return finished


@pytest.fixture
def project(built, tmp_path, tiny_size):
    """A writable copy of the finished build."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def tabs():
    """A Chromium for the tests of one module."""
    from page_browser import chromium_tabs

    with chromium_tabs() as opened:
        yield opened


@pytest.fixture
def open_tab(tabs):
    """open_tab(url) -> a tab with a profile of its own, and its log."""
    from page_browser import tab_profiles

    with tab_profiles(tabs) as opened:
        yield opened
