"""Build engines with torch-tensorrt: the ONNX graph becomes a torch program, which its converters compile.

    graph -> torch.export program -> [subprocess: torch-tensorrt -> TensorRT] -> engine
             engines.torch_tensorrt.onnx_program     engines.torch_tensorrt.worker

torch-tensorrt N requires torch N and its own TensorRT, so it is installed in a separate environment, created by
`scripts/install.sh torch-trt`, and exchanges files with this process. It has two flavours:

* torch-tensorrt-rtx for targets that are built on any machine: the engine is a TensorRT-RTX plan, as from backend `trt_rtx`,
  and is built without a GPU. Its receipt is read from the plan's text.
* torch-tensorrt for targets that are built on the device: an engine for this machine's GPU. Its receipt is read from the
  engine inspector, in that environment, because no other release of TensorRT loads the engine.
"""

import contextlib
import importlib.metadata
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib.errors import BackendError, MissingError
from calib.files import write_bytes, write_json
from calib.json_reader import read_json
from engines.backend_protocol import Advance, Backend, BackendResult, disk_full_error
from engines.build_spec import BuildSpec
from engines.engine_inspector import read_inspector
from engines.layer_records import EngineEvidence, GraphFacts
from engines.rtx_plan_text import read_plan
from engines.trt.trt_backend import this_gpu

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-torch-trt"
WORKER = Path(__file__).with_name("worker.py")
INSTALL = "scripts/install.sh torch-trt"

_REJECTED, _NOT_INSTALLED, _DISK_FULL = 2, 4, 5  # exit codes of the worker
_EXPORTED = 0.25
"""Progress once the program is written."""
_SHOWN_LINES = 12


@dataclass(frozen=True)
class Environment:
    """The Python environment of torch-tensorrt: interpreter and version of its TensorRT. "rtx" is torch-tensorrt-rtx."""

    python: Path
    flavour: str
    tensorrt: str


def version() -> str:
    """Version of the TensorRT that torch-tensorrt uses. Raises MissingError with the command that installs it."""
    return find_environment().tensorrt


def find_environment() -> Environment:
    """Find the environment by its installed distributions, without importing them. Raises MissingError if it is incomplete."""
    python = ENVIRONMENT / "bin" / "python"
    folders = [str(path) for path in ENVIRONMENT.glob("lib/python*/site-packages")]
    installed = {d.name.lower().replace("-", "_"): d.version for d in importlib.metadata.distributions(path=folders) if d.name}
    for name, flavour, library in (("torch_tensorrt_rtx", "rtx", "tensorrt_rtx"), ("torch_tensorrt", "trt", "tensorrt")):
        if python.exists() and {name, library, "torch"} <= installed.keys():
            return Environment(python, flavour, installed[library])
    raise MissingError("torch-tensorrt is not installed", where=ENVIRONMENT, next_command=INSTALL)


def build_engine(spec: BuildSpec, graph: bytes, advance: Advance) -> BackendResult:
    """Build an engine from a strongly typed graph with one image input, (batch, ...) with a symbolic or fixed batch.

    Raises GraphError for a graph that has no torch equivalent, BackendError if torch-tensorrt rejects the program, MissingError
    without its environment or, for a target that is built on the device, without a GPU; UsageError for other builder options.
    """
    environment = _require_environment(spec)
    capabilities, device = spec.target.compute_capabilities, ""
    if environment.flavour == "trt":
        capability, device = this_gpu(spec)
        capabilities = (capability,)
    spec.refuse_options("torch-tensorrt", "optimization_level")
    with tempfile.TemporaryDirectory(prefix="ufovit-torch-trt-") as name:
        folder = Path(name)
        request = _write_program(spec, graph, folder)
        advance(_EXPORTED)
        facts = _run_worker(environment, request, folder, lambda share: advance(_EXPORTED + (1 - _EXPORTED) * share))
        data = (folder / "engine").read_bytes()
    advance(1.0)
    return BackendResult(data, facts["tensorrt"], capabilities, device)


def engine_evidence(data: bytes, _graph: bytes, facts: GraphFacts) -> EngineEvidence:
    """Read the precision of every layer from the text of a TensorRT-RTX plan, else from TensorRT's engine inspector."""
    nodes = frozenset(facts.traceable)
    evidence = read_plan(data, nodes)
    if evidence.kernels is not None or (environment := find_environment()).flavour == "rtx":
        return evidence
    with tempfile.TemporaryDirectory(prefix="ufovit-torch-trt-") as name:
        folder = Path(name)
        write_bytes(folder / "engine", data)
        result = _run_worker(environment, {"inspect": str(folder / "engine")}, folder, lambda _share: None)
    return read_inspector(result["inspector"], nodes)


def _require_environment(spec: BuildSpec) -> Environment:
    environment = find_environment()
    flavour = "rtx" if spec.target.built_on == "any" else "trt"
    if environment.flavour != flavour:
        names = {"rtx": "torch-tensorrt-rtx", "trt": "torch-tensorrt"}
        raise MissingError(
            f"target {spec.target.name} needs {names[flavour]}",
            where=ENVIRONMENT,
            found=names[environment.flavour],
            next_command=f"{INSTALL}-rtx" if flavour == "rtx" else f"{INSTALL}, on a machine with an NVIDIA GPU",
        )
    return environment


def _write_program(spec: BuildSpec, graph: bytes, folder: Path) -> dict[str, Any]:
    """Write `model.pt2` and return the worker's request."""
    try:
        import onnx

        from engines.torch_tensorrt.onnx_program import export_program
    except ImportError as error:
        install = "pip install 'ufovit-edge[build]'"
        raise MissingError("torch and onnx are needed to write a torch program", found=error, next_command=install) from error
    model = onnx.load_model_from_string(graph)
    program = export_program(model, spec.batch)
    write_bytes(folder / "model.pt2", program.data)
    return {
        "program": str(folder / "model.pt2"),
        "engine": str(folder / "engine"),
        "input": {"name": program.input, "shapes": program.shapes, "dtype": program.dtype},
        "outputs": program.outputs,
        "steps": program.steps,
        "compute_capabilities": spec.target.compute_capabilities if spec.target.built_on == "any" else (),
        "optimization_level": spec.options.optimization_level,
    }


def _run_worker(environment: Environment, request: dict[str, Any], folder: Path, advance: Advance) -> dict[str, Any]:
    """Run the worker on a request and return its facts. Kills it if the wait is interrupted."""
    write_json(folder / "request.json", {**request, "facts": str(folder / "facts.json")})
    command = [str(environment.python), "-I", "-W", "ignore", str(WORKER), str(folder / "request.json")]
    with (
        (folder / "stderr").open("wb") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, cwd=folder, start_new_session=True
        ) as process,
    ):
        try:
            assert process.stdout is not None  # a pipe was requested
            for line in process.stdout:
                word, _, share = line.decode(errors="replace").partition(" ")
                if word == "share":
                    advance(float(share))
            code = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # it may have exited already
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        raise _worker_error(code, tuple((folder / "stderr").read_text(errors="replace").splitlines()))
    return read_json(folder / "facts.json")


def _worker_error(code: int, log: tuple[str, ...]) -> Exception:
    found = "\n    ".join(log[-_SHOWN_LINES:]) or "no reason given"
    if code == _NOT_INSTALLED:
        return MissingError("torch-tensorrt does not load", where=ENVIRONMENT, found=found, next_command=INSTALL)
    if code == _DISK_FULL:
        return disk_full_error()
    if code == _REJECTED:
        return BackendError("torch-tensorrt rejects the graph", found=found, log=log)
    status = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return BackendError("torch-tensorrt stopped unexpectedly", found=f"{status}\n    {found}", log=log)


BACKEND = Backend(build=build_engine, evidence=engine_evidence)
