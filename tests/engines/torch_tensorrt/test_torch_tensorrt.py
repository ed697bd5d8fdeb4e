"""torch-tensorrt backend: the torch program compared with ONNX Runtime, the protocol with a fake worker, the real worker.

Tests of the real worker run where `scripts/install.sh torch-trt` created its environment; their oracle is the engine that
TensorRT-RTX's ONNX parser gives for the same graph.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from engine_graphs import ISLAND, attention, convolutions
from torch_trt_programs import changed

from calib.errors import ArtifactError, BackendError, MissingError, UsageError
from engines.build import build
from engines.build_spec import BatchRange, BuilderOptions, BuildSpec
from engines.targets import TARGETS
from engines.torch_tensorrt import backend
from engines.typed_graph import type_graph

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[3]


RTX = replace(TARGETS["rtx"], backend="torch_trt")
FAKE = """
import json, os, sys, time
from pathlib import Path
request = json.loads(Path(sys.argv[1]).read_text())
def done(engine=b"engine", facts={{"tensorrt": "9.9"}}):
    Path(request["engine"]).write_bytes(engine)
    Path(request["facts"]).write_text(json.dumps(facts))
{body}
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(body): an environment whose worker runs `body`; builds use temporary folders in `tmp_path / "temporary"`."""

    def make(body="done()", distributions=("torch-tensorrt-rtx 2.13.0", "tensorrt_rtx 1.7.1", "torch 2.13.0")):
        environment = tmp_path / "environment"
        site = environment / "lib" / "python3.12" / "site-packages"
        for distribution in distributions:
            name, number = distribution.split()
            info = site / f"{name.replace('-', '_')}-{number}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").symlink_to(sys.executable)
        worker = tmp_path / "worker.py"
        worker.write_text(FAKE.format(body=textwrap.dedent(body)))
        monkeypatch.setattr(backend, "ENVIRONMENT", environment)
        monkeypatch.setattr(backend, "WORKER", worker)

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return make


def build_fake(spec=None, advance=lambda _share: None, model=None):
    graph = (model or attention()).SerializeToString()
    return backend.build_engine(spec or BuildSpec(Path("graph.onnx"), RTX, "fp32", BatchRange(1, 2, 4)), graph, advance)


def left_in(folder):
    """What a build left in the folder for temporary files, except the cache that torch makes on first use."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_")]


def test_a_build_exchanges_files_with_the_worker(fake, tmp_path):
    fake("""
        assert sys.stdin.read() == "" and sys.flags.isolated, "empty stdin, isolated mode"
        assert Path(request["program"]).stat().st_size > 1000
        print("chatter of a library\\nshare 0.5", flush=True)
        kept = {k: request[k] for k in ("input", "outputs", "compute_capabilities", "optimization_level")}
        done(json.dumps({**kept, "step": request["steps"]["n1"]}).encode())
    """)
    shares = []
    options = BuilderOptions(optimization_level=2)
    built = build_fake(BuildSpec(Path("graph.onnx"), RTX, "fp32", BatchRange(1, 2, 4), options=options), shares.append)
    assert json.loads(built.data) == {
        "input": {"name": "image", "shapes": [[1, 8, 16], [2, 8, 16], [4, 8, 16]], "dtype": "float32"},
        "outputs": ["residual_out"],
        "compute_capabilities": ["8.0", "8.6", "8.9", "12.0", "12.1"],
        "optimization_level": 2,
        "step": "attn.q/MatMul",
    }
    assert (built.version, built.compute_capabilities, built.device) == ("9.9", RTX.compute_capabilities, "")
    assert shares == [0.25, 0.625, 1.0]
    assert left_in(tmp_path / "temporary") == []


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ('print("x\\nRuntimeError: no converter", file=sys.stderr); sys.exit(2)', BackendError, r"rejects.*no converter"),
        ('print("ImportError: libcuda", file=sys.stderr); sys.exit(4)', MissingError, r"does not load.*libcuda.*torch-trt"),
        ("sys.exit(5)", MissingError, "disk full"),
        ("os.kill(os.getpid(), 9)", BackendError, "stopped unexpectedly.*signal 9"),
        ("sys.exit(77)", BackendError, "stopped unexpectedly.*exit code 77"),
        ("raise SystemExit", ArtifactError, "file not found"),
    ],
    ids=["refused", "no library", "disk full", "killed", "unknown code", "no answer"],
)
def test_every_exit_of_the_worker_has_its_error(fake, tmp_path, body, error, words):
    fake(body)
    with pytest.raises(error) as caught:
        build_fake()
    assert re.search(words, str(caught.value), re.DOTALL)
    assert type(caught.value) is error
    if error is BackendError:
        assert caught.value.log or "signal" in words or "code" in words
    assert left_in(tmp_path / "temporary") == []


def test_an_interrupt_kills_the_worker(fake, tmp_path):
    """Ctrl-C during a build leaves no worker, no child process of it, and no file."""
    fake(f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path({str(tmp_path / "pids")!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
        print("share 0.1", flush=True)
        time.sleep(600)
    """)

    def interrupt(share):
        if share > 0.25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_fake(advance=interrupt)
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_for(lambda pid=pid: not alive(pid))
    assert left_in(tmp_path / "temporary") == []


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "distributions",
    [
        (),
        ("torch 2.13.0",),
        ("torch-tensorrt-rtx 2.13.0", "torch 2.13.0"),
        ("torch-tensorrt-rtx 2.13.0", "tensorrt 11.0.0", "torch 2"),
    ],
)
def test_an_incomplete_environment_names_the_command(fake, distributions):
    fake(distributions=distributions)
    for use in (build_fake, backend.version):
        with pytest.raises(MissingError, match=r"not installed(.|\n)*next: scripts/install\.sh torch-trt$"):
            use()


def test_the_version_is_that_of_the_tensorrt_inside(fake):
    fake()
    assert backend.version() == "1.7.1"


def test_a_target_gets_the_flavour_that_builds_for_it(fake, monkeypatch):
    desktop = replace(TARGETS["desktop"], backend="torch_trt")
    spec = BuildSpec(Path("graph.onnx"), desktop, "fp32", BatchRange(1, 2, 4))
    fake()
    with pytest.raises(MissingError, match=r"target desktop needs torch-tensorrt\n.*\n  found: torch-tensorrt-rtx"):
        build_fake(spec)
    shutil.rmtree(backend.ENVIRONMENT)
    fake(
        "done(json.dumps(request['compute_capabilities']).encode())",
        ("torch-tensorrt 2.13.0", "tensorrt 11.0.0.1", "torch 2.13.0"),
    )
    with pytest.raises(
        MissingError, match=r"target rtx needs torch-tensorrt-rtx(.|\n)*next: scripts/install\.sh torch-trt-rtx"
    ):
        build_fake()
    monkeypatch.setattr(backend, "this_gpu", lambda _spec: ("8.9", "a GPU"))
    built = build_fake(spec)
    assert (built.data, built.compute_capabilities, built.device) == (b"[]", ("8.9",), "a GPU")


def test_evidence_of_an_engine_comes_from_the_inspector(fake):
    layer = (
        '{"Name": "x", "LayerType": "gemm", "Metadata": "[ONNX Layer: attn.q/MatMul]", '
        '"Inputs": [{"Format/Datatype": "Int8"}, {"Format/Datatype": "Int8"}]}'
    )
    fake(
        f"""
        assert Path(request["inspect"]).read_bytes() == b"an engine"
        Path(request["facts"]).write_text(json.dumps({{"inspector": '{{"Layers": [{layer}]}}'}}))
        """,
        ("torch-tensorrt 2.13.0", "tensorrt 11.0.0.1", "torch 2.13.0"),
    )
    from engines.layer_requests import graph_facts

    evidence = backend.engine_evidence(b"an engine", b"", graph_facts(attention(quantized=True)))
    assert {name: layer.actual for name, layer in evidence.layers.items()} == {"attn.q/MatMul": "int8"}


def test_an_unreadable_plan_is_not_evidence(fake):
    from engines.layer_requests import graph_facts

    fake("sys.exit(2)")
    assert backend.engine_evidence(b"bytes", b"", graph_facts(attention(quantized=True))).layers == {}


def test_options_that_torch_tensorrt_does_not_take_are_refused(fake):
    fake()
    spec = BuildSpec(Path("graph.onnx"), RTX, "fp32", options=BuilderOptions(version_compatible=True))
    with pytest.raises(UsageError, match=r"does not support this builder option\n  found: version_compatible"):
        build_fake(spec)


@pytest.mark.slow
def test_an_environment_without_torch_tensorrt_ends_as_absent(tmp_path):
    """The worker with this environment's python must report what does not load, without a traceback."""
    request = tmp_path / "request.json"
    request.write_text('{"facts": "nowhere"}')
    command = [sys.executable, "-I", str(backend.WORKER), str(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "torch_tensorrt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def real():
    """Requires the environment of scripts/install.sh and TensorRT-RTX to compare with."""
    from engines.trt import api

    try:
        if backend.find_environment().flavour != "rtx":
            pytest.skip("the environment builds for this machine's GPU; scripts/install.sh torch-trt-rtx makes the other")
        api.load("rtx")
    except MissingError as missing:
        pytest.skip(f"{missing}")


def engines_of(folder, model, precision, batch=BatchRange(1, 2, 4)):  # noqa: B008  # frozen
    """Engines of one graph, built by torch-tensorrt and by TensorRT-RTX's ONNX parser."""
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return tuple(build(BuildSpec(path, target, precision, batch, 0.0)) for target in (RTX, TARGETS["rtx"]))


def products(plan):
    """(nodes, alpha) of every matrix product and convolution in a plan's text; alpha is the output factor, from the scales."""
    steps = re.findall(rb'\n +(?:fully_connected|corrltn)=\{ name="([^"\n]+)"[^\n]*? alpha=([0-9A-F]{8})', plan)
    return sorted((frozenset(name.split(b"+")), alpha) for name, alpha in steps)


REAL = {
    "attention, int8": (type_graph(attention(quantized=True), keep_fp32=ISLAND), "int8", 1.0),
    "convolutions, int8": (type_graph(convolutions(quantized=True)), "int8", 1.0),
    "scales along K": (type_graph(attention(quantized=True, weight_axis=0)), "int8", 0.8),
    "one side of a product": (type_graph(attention(quantized=True, both_sides=False)), "int8", 0.8),
    "fp16 with an island": (type_graph(attention(), keep_fp32=ISLAND), "fp16", 0.0),
    "fp32": (convolutions(), "fp32", 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_engine_matches_that_of_the_onnx_parser(real, tmp_path, name):
    """Same receipt, read from the engine's bytes, and same scale of every product; without Q/DQ there is no INT8."""
    model, precision, share = REAL[name]
    ours, oracle = engines_of(tmp_path, model, precision)
    assert ours.receipt.int8_mac_fraction == pytest.approx(share)
    assert ours.receipt.actual == oracle.receipt.actual
    assert [(f.layer, f.actual) for f in ours.receipt.fallbacks] == [(f.layer, f.actual) for f in oracle.receipt.fallbacks]
    assert products(ours.data) == products(oracle.data) != []
    assert ("int8" in ours.receipt.actual) == (share > 0)
    assert b"residual_out" in ours.data or b"head/Gemm_out" in ours.data
    assert ours.version == oracle.version
    assert ours.compute_capabilities == TARGETS["rtx"].compute_capabilities


@pytest.mark.slow
def test_another_scale_gives_other_products(real, tmp_path):
    """Negative control of the comparison above."""
    model = type_graph(attention(quantized=True), keep_fp32=ISLAND)
    double = changed(model, "attn.q/MatMul_out_scale/fp16", lambda s: s * 2)
    onnx.save(double, tmp_path / "graph.onnx")
    other = build(BuildSpec(tmp_path / "graph.onnx", TARGETS["rtx"], "int8", BatchRange(1, 2, 4), 0.0))
    ours, _oracle = engines_of(tmp_path, model, "int8")
    different = set(products(other.data)) ^ set(products(ours.data))
    assert {name for names, _alpha in different for name in names} == {b"attn.out/MatMul"}


@pytest.mark.slow
def test_a_rejected_build_reports_the_reason(real, tmp_path):
    path = tmp_path / "graph.onnx"
    onnx.save(attention(), path)
    target = replace(RTX, compute_capabilities=("1.0",))
    with pytest.raises(BackendError, match=r"torch-tensorrt rejects the graph(.|\n)*SM10"):
        build(BuildSpec(path, target, "fp32"))


@pytest.mark.slow
def test_one_batch_size_is_built(real, tmp_path):
    ours, oracle = engines_of(tmp_path, type_graph(attention(quantized=True), keep_fp32=ISLAND), "int8", BatchRange(2, 2, 2))
    assert products(ours.data) == products(oracle.data) != []


@pytest.fixture
def checkout(tmp_path):
    """install.sh and its constraints, with a python that creates environments whose pip only records its calls."""
    (tmp_path / "scripts").mkdir()
    for name in ("install.sh", "constraints.txt", "constraints-torch-trt.txt"):
        shutil.copy2(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    script(tmp_path / "inside", 'echo "$*" >>calls; [[ ! -e refuse || "$*" != *"$(cat refuse)"* ]]')
    script(
        tmp_path / "python",
        """
        if [[ "$1 $2" == "-m venv" ]]; then
          rm -rf "${@: -1}"; mkdir -p "${@: -1}/bin"; cp inside "${@: -1}/bin/python"
        fi
    """,
    )
    script(tmp_path / "bin" / "nvidia-smi", "exit 0")
    script(tmp_path / "bin" / "timeout", "exit 1")  # PyTorch's index is not asked
    return tmp_path


def script(path, body):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{textwrap.dedent(body)}\n")
    path.chmod(0o755)


def install(checkout, *words, gpu=False):
    (checkout / "bin" / "nvidia-smi").chmod(0o755 if gpu else 0o644)
    environment = {**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "PYTHON": "./python"}
    done = subprocess.run(
        ["scripts/install.sh", *words], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    calls = (checkout / "calls").read_text().splitlines() if (checkout / "calls").exists() else []
    (checkout / "calls").unlink(missing_ok=True)
    return done, [call.partition("constraints-torch-trt.txt ")[2] for call in calls if " install " in call]


RTX_CALLS = ["torch", "numpy packaging psutil dllist tensorrt_rtx", "--no-deps torch-tensorrt-rtx"]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has its own nvidia-smi")
def test_install_creates_only_its_environment_and_once(checkout):
    first, calls = install(checkout, "torch-trt")
    assert (first.returncode, calls) == (0, RTX_CALLS)
    assert not (checkout / ".venv").exists()
    again, calls = install(checkout, "torch-trt")
    assert (again.returncode, again.stdout, again.stderr, calls) == (0, "", "", [])
    with (checkout / "scripts" / "constraints-torch-trt.txt").open("a") as stream:
        stream.write("# changed\n")
    _changed, calls = install(checkout, "torch-trt")
    assert calls == RTX_CALLS


def test_install_selects_the_flavour_of_the_machine(checkout):
    done, calls = install(checkout, "torch-trt", gpu=True)
    assert (done.returncode, calls) == (0, ["torch-tensorrt"])
    _done, calls = install(checkout, "torch-trt-rtx", gpu=True)
    assert calls == RTX_CALLS
    assert len((checkout / ".venv-torch-trt" / ".installed").read_text().splitlines()) == 1


@pytest.mark.parametrize("refused", ["torch", "tensorrt_rtx", "--no-deps"])
def test_a_failed_installation_is_repeated(checkout, refused):
    (checkout / "refuse").write_text(refused)
    for _attempt in range(2):
        done, calls = install(checkout, "torch-trt-rtx")
        assert done.returncode == 4, done.stderr
        assert "pip failed" in done.stderr
        assert calls
