"""A typed FP16 graph on the CPU, with every rounding of FP16 hardware."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.runtime.ort_runner import OrtRunner

if TYPE_CHECKING:
    from onnx import ModelProto


def emulated_runner(typed: ModelProto, where: Path, threads: int = 0, *, throughput: bool = False) -> OrtRunner:
    """Runs a typed FP16 graph on the CPU with every rounding of FP16 hardware. Arguments as of `OrtRunner`."""
    from calib.qdq_writer import serialize
    from engines.fp16_emulation import emulated_graph

    return OrtRunner(where, threads, data=serialize(emulated_graph(typed)), throughput=throughput)
