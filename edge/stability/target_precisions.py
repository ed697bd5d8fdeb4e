"""What a target computes inside an FP16 operator: the precisions in `target_precisions.json`, one table per backend.

A strongly typed graph sets the type of every tensor, not the type of what exists inside an operator only:

    squares, deviations, exponentials of the elements    `OperatorPrecision.elements`
    the sum of them, or of a product                     `OperatorPrecision.sums`

A LayerNormalization, for example, squares and adds in FP32 on TensorRT-RTX; a ReduceSumSquare squares in FP16, where 256^2
overflows already, and adds in FP32. The table is measured where plans can be read, documented elsewhere; an operator that it
does not have is "not told", and a verdict assumes FP16. `scripts/bench/target_precisions.py` writes it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Precision = Literal["fp32", "fp16", "not told"]
_TABLE_OF = {"trt_rtx": "rtx", "trt": "tensorrt", "torch_trt": "tensorrt"}
_NARROWEST_FIRST: tuple[Precision, ...] = ("fp16", "not told", "fp32")


def narrowest(*precisions: Precision) -> Precision:
    """The least favourable of some precisions: "fp16" before "not told" before "fp32"."""
    return min(precisions, key=_NARROWEST_FIRST.index)


@dataclass(frozen=True)
class OperatorPrecision:
    """One operator on one backend.

    Attributes:
        elements: type of what is computed of each element before it is added; of a plain sum, which adds what the graph
            stores, "fp32".
        sums: type of the accumulator.
        evidence: the piece of text that this rests on.
    """

    elements: Precision
    sums: Precision
    evidence: str


@dataclass(frozen=True)
class TargetPrecisions:
    """The operators of one backend.

    Attributes:
        backend: "rtx" (TensorRT-RTX), "tensorrt", or "" for an unknown target.
        version: release that was measured, or that the documents are of.
        source: "measured: ..." or "documented: ...".
        operators: ONNX operator -> its precisions; one that is missing is not told.
    """

    backend: str
    version: str
    source: str
    operators: Mapping[str, OperatorPrecision]

    def of(self, op_type: str) -> Precision:
        """The narrower of an operator's elements and sums: whether all that exists inside it only is FP32."""
        return narrowest(self.elements(op_type), self.sums(op_type))

    def elements(self, op_type: str) -> Precision:
        """Type of an operator's squares, deviations or exponentials."""
        known = self.operators.get(op_type)
        return known.elements if known else "not told"

    def sums(self, op_type: str) -> Precision:
        """Type of an operator's accumulator."""
        known = self.operators.get(op_type)
        return known.sums if known else "not told"


def target_precisions(backend: str | None) -> TargetPrecisions:
    """The table of "rtx", "tensorrt" or a backend of `engines.backends`; an empty one for None and for an unknown name."""
    name = _TABLE_OF.get(backend or "", backend or "")
    return _read_tables().get(name) or TargetPrecisions(name, "", "no table for this target", {})


@functools.cache
def _read_tables() -> Mapping[str, TargetPrecisions]:
    text = resources.files("edge.stability").joinpath("target_precisions.json").read_text(encoding="utf-8")
    return {
        backend: TargetPrecisions(
            backend=backend,
            version=entry["version"],
            source=entry["source"],
            operators={name: OperatorPrecision(**fields) for name, fields in entry["operators"].items()},
        )
        for backend, entry in json.loads(text).items()
    }
