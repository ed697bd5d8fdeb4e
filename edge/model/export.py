"""torch -> ONNX: exact foldings, opset 20, readable names, onnxsim in a subprocess, parity on real images.

Opset 20 is the newest that the parsers of TensorRT 10.0 and later all read; it has LayerNormalization and Gelu as single
nodes and FP16 scales for Q/DQ.
"""

import ast
import contextlib
import gc
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxscript.rewriter.rules.common import slice_split_rule

from calib.errors import VerdictError
from calib.files import atomic_path, sha256_file
from calib.metrics import sqnr_db
from calib.ort_session import GraphSession
from edge.model.export_foldings import FOLDINGS, fold
from edge.model.export_record import ExportRecord, Parity, Simplification
from edge.model.metadata import CheckpointInfo, write_graph_info
from edge.model.ufo_vit import UfoVit
from edge.numeric_tolerances import EXPORT_SQNR_DB, SIMPLIFY_SQNR_DB, SQNR_CAP_DB

Float32 = npt.NDArray[np.float32]

OPSET = 20
INPUT, OUTPUT = "image", "logits"
SIMPLIFY_SECONDS = 120.0
_SIMPLIFY = """import sys
sys.modules["torch"] = None
import onnx, onnxsim
simplified, _ = onnxsim.simplify(sys.argv[1], perform_optimization=False)
onnx.save(simplified, sys.argv[2])
"""
"""Without torch, which onnxsim would import for functions that are not used here: two thirds of this process's time."""


def export_onnx(model: UfoVit, path: Path, images: Float32, info: CheckpointInfo | None = None) -> ExportRecord:
    """Write `model` as an ONNX file with dynamic batch and check it on real images.

    Args:
        model: the network in eval mode; it is folded on a copy.
        path: the file to write, atomically.
        images: preprocessed images (B, 3, H, W), B >= 2.
        info: metadata of the checkpoint, which the graph gets too.

    Raises VerdictError when ONNX Runtime's logits do not agree with torch's.
    """
    proto, simplification = simplify(to_onnx(fold(model)), images)
    if info is not None:
        write_graph_info(proto, info)
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        parity = check_parity(model, temporary, images)  # before the file gets its name: no graph that failed is left behind
    return ExportRecord(sha256_file(path), OPSET, FOLDINGS, simplification, parity)


def to_onnx(model: UfoVit) -> onnx.ModelProto:
    """The ONNX graph of a (folded) network: input `image` (batch, 3, H, W), output `logits` (batch, classes)."""
    example = torch.zeros(2, 3, model.cfg.height, model.cfg.width)
    with _exporting():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    rename_by_module(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Silences the exporter, whose log names optional libraries that this graph does not need, and spares it useless work.

    Its many objects stay alive: collecting garbage takes a tenth of its time for nothing. Its optimizer's rule for pairs of
    Slices goes through the whole graph at every node, three quarters of the optimizer's time; this network has no such pair.
    """
    logger, collecting = logging.getLogger("torch.onnx"), gc.isenabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    gc.disable()
    slice_split_rule.try_rewrite = lambda *_arguments, **_options: None  # of this instance
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # deprecations inside the exporter do not concern the user
            yield
    finally:
        del slice_split_rule.try_rewrite
        logger.setLevel(level)
        if collecting:
            gc.enable()


def rename_by_module(proto: onnx.ModelProto) -> None:
    """Name nodes and tensors by the torch module they come from, in place: `blocks.0.attn.q/MatMul`.

    Also drops the exporter's metadata, which contain source paths of the machine and would make equal graphs differ.
    """
    graph = proto.graph
    renamed: dict[str, str] = {}
    taken: set[str] = {*(i.name for i in graph.input), *(o.name for o in graph.output)}
    fixed = set(taken)
    for node in graph.node:
        scope = _module_path(node)
        node.name = _unique(f"{scope}/{node.op_type}".lstrip("/"), taken)
        for i, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = f"{node.name}_output" + (f"_{i}" if i else "")
        for i, name in enumerate(node.input):
            if re.fullmatch(r"val_\d+", name) and name not in renamed:  # a constant that the exporter made
                renamed[name] = f"{node.name}.{'weight' if i == 1 and 'MatMul' in node.op_type else i}"
        del node.metadata_props[:]
        node.doc_string = ""
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)
        del value.metadata_props[:]
        value.doc_string = ""
    del graph.metadata_props[:], proto.metadata_props[:]
    graph.name, graph.doc_string, proto.producer_version = "ufovit", "", ""


def _module_path(node: onnx.NodeProto) -> str:
    """The innermost torch module of a node, from the exporter's name scopes: ['', 'blocks.0', ..., 'linear_3']."""
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(prop.value)
            scope = str(scopes[-2]) if len(scopes) > 1 else ""
            return "" if scope.startswith("_") else scope
    return ""


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def simplify(
    proto: onnx.ModelProto, images: Float32, seconds: float = SIMPLIFY_SECONDS
) -> tuple[onnx.ModelProto, Simplification]:
    """Run onnxsim in a subprocess with a time limit; return its graph if it computes the same, else the original.

    Constants are folded and shapes inferred; onnxsim's fusions stay off. They merge the projections of Q, K and V into one
    product and wrap every linear layer into Reshape-Gemm-Reshape, which hides the layers that are calibrated, folded and
    reported on; TensorRT does such fusions itself.
    """
    before = len(proto.graph.node)

    def kept(reason: str) -> tuple[onnx.ModelProto, Simplification]:
        return proto, Simplification(False, reason, before, before)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        source.write_bytes(proto.SerializeToString(deterministic=True))
        command = [sys.executable, "-c", _SIMPLIFY, str(source), str(target)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return kept(f"onnxsim took more than {seconds:g} s")
        except OSError as error:
            return kept(f"onnxsim cannot be started: {error}")
        if run.returncode or not target.is_file():
            lines = (run.stderr or run.stdout).strip().splitlines() or ["no message"]
            return kept(f"onnxsim failed with status {run.returncode}: {lines[-1]}")
        try:
            simplified = onnx.load(target)
            agreement = _agreement(source, target, images)
        except Exception as error:  # noqa: BLE001  # onnx, protobuf and ONNX Runtime share no base class for a damaged graph
            return kept(f"onnxsim's graph cannot be used: {' '.join(str(error).split())}")
    if agreement < SIMPLIFY_SQNR_DB:
        return kept(f"onnxsim's graph differs: SQNR of the logits {agreement:.1f} dB, {SIMPLIFY_SQNR_DB:g} dB needed")
    del simplified.metadata_props[:]
    return simplified, Simplification(True, "same logits", before, len(simplified.graph.node))


def _agreement(first: Path, second: Path, images: Float32) -> float:
    """The smaller SQNR of the logits, in dB, of all images at once and of one alone: a frozen batch size shows."""
    runs = _logits_of(first), _logits_of(second)
    return min(sqnr_db(*(run(batch) for run in runs)) for batch in (images, images[:1]))


def _logits_of(path: Path) -> Callable[[Float32], Float32]:
    """Runs a graph with one input and one output: images (B, 3, H, W) float32 -> logits (B, classes)."""
    graph = onnx.load(path)
    session, (image,), (logits,) = GraphSession(graph, threads=0, where=path), graph.graph.input, graph.graph.output
    return lambda images: np.asarray(session({image.name: images})[logits.name])


def check_parity(model: UfoVit, path: Path, images: Float32) -> Parity:
    """Compare the file's logits with the network's in torch. Raises VerdictError below EXPORT_SQNR_DB."""
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    exported = _logits_of(path)(images)
    parity = Parity(len(images), float(np.abs(expected - exported).max()), min(sqnr_db(expected, exported), SQNR_CAP_DB))
    if not parity.sqnr_db >= EXPORT_SQNR_DB:
        raise VerdictError(
            "the exported graph does not compute what the network computes",
            where=path,
            found=f"SQNR of the logits {parity.sqnr_db:.1f} dB, largest difference {parity.max_abs:.3g}",
            allowed=f"at least {EXPORT_SQNR_DB:g} dB",
        )
    return parity
