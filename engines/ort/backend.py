"""Build CPU engines with ONNX Runtime: the engine file is the ONNX model after graph optimization.

Optimization level "extended" adds no hardware-specific layout, so the file loads on any CPU. ONNX Runtime keeps some layers in
float:

* on x86 it converts INT8 activations to UINT8, but only for a Q/DQ pair with one consumer. So every consumer gets its own pair,
  which changes no value, and the optimizer that would merge the pairs is disabled.
* it has no INT8 convolution with a float output. Such layers stay in float, and the receipt lists them.

The graph is edited as a protobuf: with onnx-ir it takes ten times as long and the bytes differ (docs/engines.md).

On x86 without VNNI instructions, INT8 kernels may saturate intermediate sums: evaluate an engine on its target machine.
"""

import errno
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx

from calib.errors import BackendError, MissingError
from engines.backend_protocol import Advance, Backend, BackendResult, disk_full_error
from engines.build_spec import BuildSpec
from engines.ort.graph import optimized_evidence

_MERGING_OPTIMIZER = "CommonSubexpressionElimination"
_THREADS = 1
_ERRORS_ONLY = 3


def version() -> str:
    """Version of ONNX Runtime. Raises MissingError if it is not installed."""
    return str(_load().__version__)


def build_optimized(spec: BuildSpec, graph: bytes, advance: Advance) -> BackendResult:
    """Optimize a graph. Raises BackendError if ONNX Runtime rejects it, UsageError for "fp16", which it computes in FP32."""
    spec.refuse_options("ONNX Runtime")
    spec.refuse_fp16("ONNX Runtime")
    runtime = _load()
    separate = pair_per_reader(onnx.load_model_from_string(graph))
    advance(0.1)
    with tempfile.TemporaryDirectory(prefix="ufovit-ort-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.intra_op_num_threads = options.inter_op_num_threads = _THREADS
        options.log_severity_level = _ERRORS_ONLY
        data = separate.SerializeToString(deterministic=True)
        try:
            runtime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=[_MERGING_OPTIMIZER]
            )
            engine = path.read_bytes()
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            text = str(error)
            disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            no_room = shutil.disk_usage(folder).free < len(data)  # protobuf does not say why it failed to write
            if disk_full or no_room or "No space left" in text:
                raise disk_full_error() from error
            raise BackendError("ONNX Runtime rejects the graph", where=spec.onnx, found=text, log=(text,)) from error
    advance(1.0)
    return BackendResult(engine, version())


def pair_per_reader(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model so that every consumer of a Q/DQ pair on an activation has its own pair. Values do not change."""
    separate = deepcopy(model)
    nodes = list(separate.graph.node)
    producers = {out: n for n in nodes for out in n.output}
    consumers: dict[str, int] = {v.name: 1 for v in separate.graph.output}
    result: list[onnx.NodeProto] = []
    for node in nodes:
        for i, tensor in enumerate(node.input):
            dequantize = producers.get(tensor)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = producers.get(dequantize.input[0])
            if quantize is None or quantize.op_type != "QuantizeLinear":
                continue
            consumers[tensor] = consumers.get(tensor, 0) + 1
            if consumers[tensor] > 1:
                own_pair = deepcopy(quantize), deepcopy(dequantize)
                for copied in own_pair:
                    copied.name = f"{copied.name}/reader{consumers[tensor]}"
                    copied.output[0] = f"{copied.output[0]}/reader{consumers[tensor]}"
                own_pair[1].input[0] = own_pair[0].output[0]
                node.input[i] = own_pair[1].output[0]
                result += own_pair
        result.append(node)
    del separate.graph.node[:]
    separate.graph.node.extend(result)
    return separate


def _load() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError(
            "ONNX Runtime is not installed", found=error, next_command="pip install 'ufovit-edge[build]'"
        ) from error
    return onnxruntime


BACKEND = Backend(build=build_optimized, evidence=optimized_evidence)
