"""Backend ONNX Runtime on a CPU: the engine file is the model after its graph optimizations.

Level "extended" is used: it holds no hardware-specific layout and its file loads on any CPU. Two of ONNX Runtime's habits keep
layers in float and are worked around, without changing a number:

* on x86 it turns INT8 activations into UINT8, and does so only for a Q/DQ pair with one reader. So every reader gets a pair of
  its own, and the optimizer that would merge the pairs again is switched off.
* it has no INT8 convolution with a float output. Such layers stay in float, and the receipt says so.

The graph is edited as a protobuf: with onnx-ir it takes ten times as long and other bytes come out (docs/engines.md).

On x86 without VNNI instructions, its INT8 kernels may saturate intermediate sums: judge an engine on the machine it is for.
"""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import onnx

from calib.errors import BackendError, InputError, MissingError
from engines.backend_protocol import Advance, Backend, Built, disk_full_error
from engines.build_spec import BuildSpec
from engines.ort.graph import optimized_evidence

_MERGING_OPTIMIZER = "CommonSubexpressionElimination"
_THREADS = 1
_ERRORS_ONLY = 3


def version() -> str:
    """Version of ONNX Runtime; raises MissingError when it is not installed."""
    return str(_load().__version__)


def build_optimized(spec: BuildSpec, graph: bytes, advance: Advance) -> Built:
    """Optimize a graph. Raises BackendError when ONNX Runtime refuses it, InputError for "fp16", which it runs in FP32."""
    spec.refuse_options("ONNX Runtime")
    if spec.precision == "fp16":
        raise InputError(
            "ONNX Runtime computes FP16 graphs in FP32 on a CPU",
            found=f"precision fp16 for target {spec.target.name}",
            allowed="fp32, int8, or a GPU target",
        )
    runtime = _load()
    private = pair_per_reader(onnx.load_model_from_string(graph))
    advance(0.1)
    with tempfile.TemporaryDirectory(prefix="ufovit-ort-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.intra_op_num_threads = options.inter_op_num_threads = _THREADS
        options.log_severity_level = _ERRORS_ONLY
        data = private.SerializeToString(deterministic=True)
        try:
            runtime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=[_MERGING_OPTIMIZER]
            )
            engine = path.read_bytes()
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise _build_error(spec, error) from error
    advance(1.0)
    return Built(engine, version())


def pair_per_reader(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every reader of an activation's Q/DQ pair has its own pair: same numbers, more nodes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    producers = {out: n for n in nodes for out in n.output}
    readers: dict[str, int] = {v.name: 1 for v in copy.graph.output}
    result = []
    for node in nodes:
        for at, tensor in enumerate(node.input):
            dequantize = producers.get(tensor)
            quantize = producers.get(dequantize.input[0]) if dequantize is not None else None
            if dequantize is None or quantize is None or not _is_pair(quantize, dequantize):
                continue
            readers[tensor] = readers.get(tensor, 0) + 1
            if readers[tensor] > 1:
                pair = _copy_pair(quantize, dequantize, readers[tensor])
                node.input[at] = pair[1].output[0]
                result += pair
        result.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(result)
    return copy


def _is_pair(quantize: onnx.NodeProto, dequantize: onnx.NodeProto) -> bool:
    return quantize.op_type == "QuantizeLinear" and dequantize.op_type == "DequantizeLinear"


def _copy_pair(quantize: onnx.NodeProto, dequantize: onnx.NodeProto, number: int) -> list[onnx.NodeProto]:
    q, dq = onnx.NodeProto(), onnx.NodeProto()
    q.CopyFrom(quantize)
    dq.CopyFrom(dequantize)
    for node in (q, dq):
        node.name = f"{node.name}/reader{number}"
        node.output[0] = f"{node.output[0]}/reader{number}"
    dq.input[0] = q.output[0]
    return [q, dq]


def _build_error(spec: BuildSpec, error: Exception) -> Exception:
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in text:
        return disk_full_error()
    return BackendError("ONNX Runtime does not accept the graph", where=spec.onnx, found=text, log=(text,))


def _load() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError(
            "ONNX Runtime is not installed", found=error, next_command="pip install 'ufovit-edge[build]'"
        ) from error
    return onnxruntime


BACKEND = Backend(build=build_optimized, evidence=optimized_evidence)
