#!/usr/bin/env python3
"""Check whether TensorRT-RTX accepts a graph, and its INT8 share: prints one JSON object.

python rtx_check.py GRAPH.onnx PRECISION        PRECISION is int8, or fp32 for the float graph

{"accepted": true, "int8_mac_fraction": 0.98}        {"accepted": false, "reason": "..."}
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import onnx

from calib.errors import BackendError, InputError, UfovitError
from engines.build import build
from engines.build_spec import BuildSpec, Precision
from engines.targets import TARGETS


def main() -> None:
    path, precision = Path(sys.argv[1]), sys.argv[2]
    assert precision in ("int8", "fp32")
    print(json.dumps(check(path, "int8" if precision == "int8" else "fp32")))


def check(path: Path, precision: Precision) -> dict[str, Any]:
    """Build for RTX GPUs without an INT8 floor; a rejection includes the first line of its reason."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder, "named.onnx")
        onnx.save(with_unique_names(onnx.load(path)), named)
        try:
            built = build(BuildSpec(named, TARGETS["rtx"], precision, int8_floor=0.0))
        except (BackendError, InputError) as error:
            return {"accepted": False, "reason": first_reason(error)}
    return {"accepted": True, "int8_mac_fraction": built.receipt.int8_mac_fraction}


def with_unique_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name every node without a unique name: an engine's layers are identified by name."""
    taken: set[str] = set()
    for position, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"node_{position}_{node.op_type}"
        taken.add(node.name)
    return model


def first_reason(error: UfovitError) -> str:
    """First line of the library's message, else of the error."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line.removeprefix("found: ") for line in lines if line.startswith("found: ")), "")
    return (reason or lines[0])[:300]


if __name__ == "__main__":
    main()
