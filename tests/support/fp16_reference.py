"""FP16 arithmetic written out in numpy, and sessions that run an emulated graph."""

from pathlib import Path

import numpy as np
import pytest
from engine_graphs import Graph
from onnx.reference import ReferenceEvaluator

from calib.ort_session import TappedGraph
from edge.runtime.ort_runner import OrtRunner
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph

HALF, SINGLE = np.float16, np.float32
FP16_SQNR_DB = 50.0  # 11 significant bits leave 66 dB for one rounding; these graphs stack a few


def by_tapped_graph(model, x):
    output = model.graph.output[0].name
    return TappedGraph(model, (output,))(x)[output]


def by_ort_runner(model, x):
    return OrtRunner(Path("in memory"), 1, data=model.SerializeToString())(x)[0]


SESSIONS = pytest.mark.parametrize("session", [by_tapped_graph, by_ort_runner])


def emulate(model, x, *, keep=frozenset(), accumulate="fp16", session=by_tapped_graph):
    return session(emulated_graph(type_graph(model, keep_fp32=keep), accumulate=accumulate), x)


def half(values):
    """r(.): FP32 values rounded to FP16."""
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(HALF).astype(SINGLE)


def reference(typed, x):
    """Run onnx's reference evaluator on a typed graph: numpy float16, node by node."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(typed).run(None, {"image": x})[0]


def wide(*shape, seed=3):
    """Both signs, magnitudes 2^-27 to 2^17: beyond the range of FP16 on either side."""
    random = np.random.default_rng(seed)
    return (np.exp2(random.uniform(-27, 17, shape)) * random.choice([-1, 1], shape)).astype(SINGLE)


def same(result, expected):
    """Bitwise equal, except for the sign of NaN."""
    result, expected = np.asarray(result), np.asarray(expected)
    if (result.dtype, result.shape) != (expected.dtype, expected.shape):
        return False
    nan = np.isnan(result)
    return bool((nan == np.isnan(expected)).all() and (result.view(np.uint32) == expected.view(np.uint32))[~nan].all())


def sqnr_db(expected, result):
    noise = np.square(expected.astype(np.float64) - result).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / max(noise, 1e-30)))


def product_graph(depth, rows=3, columns=4):
    """image (depth, rows + columns) -> left^T right, left (rows, depth) and right (depth, columns): two activations."""
    g = Graph(depth, rows + columns)
    for name, low, high in (("left", 0, rows), ("right", rows, rows + columns)):
        bounds = [g.store(f"{name}_{i}", np.array([v], np.int64)) for i, v in enumerate((low, high, 2))]
        g.node("Slice", ["image", *bounds], name)
    g.node("Transpose", ["left_out"], "turn", perm=[0, 2, 1])
    return g.model(g.node("MatMul", ["turn_out", "right_out"], "product"), rows, columns)
