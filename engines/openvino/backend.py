"""Build CPU engines for OpenVINO: the engine file is the Q/DQ graph with its pairs where OpenVINO fuses them.

OpenVINO compiles a graph where it runs and for the processor there, so that the file holds no kernels and loads on any CPU. The
same bytes come from the same graph.
"""

import onnx

from calib.errors import BackendError, GraphError
from engines.backend_protocol import Advance, Backend, BackendResult
from engines.build_spec import BuildSpec
from engines.openvino.api import compile_graph, load, read_graph
from engines.openvino.executed_graph import executed_evidence
from engines.openvino.qdq_order import quantize_early


def version() -> str:
    """Release of OpenVINO, without the build. Raises MissingError if it is not installed."""
    return str(load().__version__).partition("-")[0]


def build_prepared(spec: BuildSpec, graph: bytes, advance: Advance) -> BackendResult:
    """Prepare a graph. Raises BackendError if OpenVINO cannot compile it, UsageError for "fp16", which it computes in FP32."""
    spec.refuse_options("OpenVINO")
    spec.refuse_fp16("OpenVINO")
    release = version()
    engine = quantize_early(onnx.load_model_from_string(graph)).SerializeToString(deterministic=True)
    advance(0.2)
    try:
        compile_graph(read_graph(engine, spec.onnx), spec.onnx)
    except GraphError as error:
        raise BackendError(
            "OpenVINO rejects the graph",
            where=spec.onnx,
            found=str(error),
            next_command="build for ONNX Runtime: --backend ort",
            log=(str(error),),
        ) from error
    advance(1.0)
    return BackendResult(engine, release)


BACKEND = Backend(build=build_prepared, evidence=executed_evidence)
