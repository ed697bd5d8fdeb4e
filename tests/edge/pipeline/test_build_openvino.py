"""`ufovit build` for target cpu with OpenVINO on a tiny network: who is judged, who runs it, what a second build reuses."""

import numpy as np
import pytest
from tiny_project import command, read

from edge.cli import run
from edge.runtime.open_build import open_runner
from engines.build_folder.folder import BuildFolder

pytest.importorskip("openvino", reason="pip install 'ufovit-edge[openvino]'")
pytestmark = pytest.mark.slow


def test_the_engine_itself_is_judged_and_run_by_openvino(project, capsys):
    share_in_ort = read(project, "manifest.json")["receipt"]["int8_mac_fraction"]
    arguments = command(project, backend="openvino")
    assert run(arguments) == 0, capsys.readouterr().err
    manifest, drift = (read(project, file) for file in ("manifest.json", "drift.json"))
    assert manifest["engine"]["backend"] == "openvino"
    assert drift["engine"]["ran_on"] == "OpenVINO, CPU: the engine itself"
    assert drift["engine"]["sha256"] == manifest["engine"]["sha256"]
    assert manifest["receipt"]["int8_mac_fraction"] > share_in_ort, "convolutions too"
    opened = open_runner(BuildFolder(project / "out"), threads=1)
    assert (opened.name, opened.itself) == ("openvino", True)
    other = open_runner(BuildFolder(project / "out"), "ort", threads=1)
    assert (other.name, other.itself) == ("ort", False)
    with opened.runner, other.runner:
        wanted = np.load(project / "out/logits.npz")["engine"]
        images = opened.golden_images(2)
        np.testing.assert_allclose(opened.runner(images)[0], other.runner(images)[0], atol=0.1 * np.abs(wanted).max())
    written = (project / "out/engine.onnx").stat().st_mtime_ns
    assert run(arguments) == 0
    assert (project / "out/engine.onnx").stat().st_mtime_ns == written, "nothing changed, nothing is built again"
