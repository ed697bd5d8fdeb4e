"""The benchmark of other libraries' networks: limited commands, live random networks, an honest table."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts/bench/strangers"
sys.path.append(str(SCRIPTS))

from run_command import run_limited  # noqa: E402
from strangers_table import write_table  # noqa: E402
from trial_inputs import OutputSums  # noqa: E402

from calib.files import write_json  # noqa: E402
from calib.metrics import sqnr_db  # noqa: E402


def python(source):
    return [sys.executable, "-c", source]


def test_command_that_ends():
    finished = run_limited(python("import sys; print('first'); print('last', file=sys.stderr); sys.exit(3)"), 30)
    assert finished.exit_code == 3
    assert set(finished.lines) == {"first", "last"}
    assert finished.peak_bytes > 1 << 20


@pytest.mark.slow
def test_command_and_its_children_are_ended_at_the_limit(tmp_path):
    late = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    finished = run_limited(python(parent), 0.5)
    assert finished.exit_code is None
    assert finished.seconds < 2.5
    run_limited(python("import time; time.sleep(3)"), 10)
    assert not late.exists()


def result(name, ours, theirs, exit_code=0, error=None, noise=16 * [1.0]):
    """A record of one network: the toolkit's build and one effort, ONNX Runtime at several settings; `noise` of the toolkit."""
    run = {"exit_code": exit_code, "error": error, "seconds": 2.0, "stages": ["imported"], "peak_bytes": 1}
    network = {"name": name, "exporter": "ts", "opset": 11, "free": [], "images": [8, 9], "versions": {"timm": "1.2.3"}}
    judged = {"worst": 0, "noise": 16 * [1.0]}
    peers = {f"onnxruntime-{setting}": judged | {"sqnr_db": value} for setting, value in theirs.items()}
    fast = judged | {"sqnr_db": ours, "int8_share": 0.5, "noise": list(noise)}
    efforts = {} if ours is None else {"calibrate-fast": run | fast}
    return {"network": network, "build": run, **efforts, **peers, "onnxruntime-trt-minmax": {"error": "crashed"}}


def test_table_names_what_is_below_and_what_failed(tmp_path):
    write_json(tmp_path / "a.json", result("above", 20.0, {"trt-entropy": 19.0, "trt-percentile": 11.0}))
    write_json(tmp_path / "b.json", result("below", 12.0, {"trt-entropy": 11.0, "trt-percentile": 12.5}))
    uneven = np.random.default_rng(0).lognormal(0.0, 1.0, 16)  # as many images lose as gain
    write_json(tmp_path / "d.json", result("undecided", 12.0, {"trt-percentile": 12.1}, noise=uneven))
    write_json(tmp_path / "c.json", result("refused", None, {}, exit_code=2, error="node Loop_3"))
    text = write_table(tmp_path, "COMMAND")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "| **20.0** |" in rows["above"]
    assert "19.0 trt-entropy" in rows["above"]
    assert "| 12.0 |" in rows["below"]
    assert "| 12.0 ~ |" in rows["undecided"]
    assert "| 2 |" in rows["refused"]
    assert "Built to a verdict: 3 of 4" in text
    (line,) = [line for line in text.splitlines() if line.startswith("- Everything in INT8, fast")]
    assert "3 networks, -0.1 dB in the middle; below on 2, of which the images decide 1: below (-0.50 ± 0.00 dB), und" in line
    assert "- refused: node Loop_3" in text


def test_random_network_has_neither_zeros_nor_identities():
    torch = pytest.importorskip("torch")
    from live_parameters import enliven

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)
            self.gain = torch.nn.Parameter(torch.full((4, 1, 1), 1e-6))
            self.temperature = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, images):
            return self.norm(self.conv(images)) * self.gain

    network = Network()
    images = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, (8, 3, 8, 8)).astype(np.float32))
    enliven(network, list(images.split(4)), seed=0)
    assert not network.training
    assert float(network.gain.detach().min()) >= 0.1
    assert network.temperature.item() == 1.0
    assert len(set(network.norm.weight.tolist())) == 4
    with torch.inference_mode():
        features = network.conv(images)
    expected = np.mean([part.numpy().mean(axis=(0, 2, 3)) for part in features.split(4)], axis=0)
    assert np.allclose(network.norm.running_mean.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize(("gain", "offset"), [(1.01, 0.0), (1.0, 0.3), (2.0, 0.0), (-1.0, 0.0), (0.0, 0.0)])
def test_sqnr_of_batches_is_that_of_all_images(gain, offset):
    expected = np.random.default_rng(1).normal(5.0, 1.0, (11, 2, 3)).astype(np.float32)
    answer = expected * np.float32(gain) + np.float32(offset)
    sums = OutputSums()
    for start in (0, 4, 8):
        sums.add(expected[start : start + 4], answer[start : start + 4])
    assert sums.sqnr_db(centred=False) == pytest.approx(sqnr_db(expected, answer), abs=1e-6)
    errors = (expected - answer).astype(np.float64).reshape(11, 6)
    assert np.allclose(sums.noise, np.square(errors).sum(axis=1), rtol=1e-5)
    if offset == 0.0:  # a constant error leaves no centred one but rounding
        centred = [side - side.mean(axis=0, dtype=np.float64) for side in (expected, answer)]
        assert sums.sqnr_db(centred=True) == pytest.approx(sqnr_db(*centred), abs=1e-3)
    else:
        assert sums.sqnr_db(centred=True) > 100


def test_answer_that_is_not_finite_has_no_sqnr():
    sums = OutputSums()
    sums.add(np.ones((2, 3), np.float32), np.array([[1, 1, 1], [1, np.nan, 1]], np.float32))
    assert sums.sqnr_db(centred=False) == -300.0
