#!/usr/bin/env python3
"""Convert a graph to FP16 with modelopt.onnx.autocast, its nodes in FP32 chosen on the given images, on the CPU.

    python modelopt_autocast.py GRAPH.onnx IMAGES.npy OUT.onnx        the environment of requirements-modelopt.txt

All options have their defaults, but that the graph's inputs and outputs stay FP32.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import numpy as np
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision  # installed in its own environment

    graph, images, out = map(Path, sys.argv[1:])
    source = onnx.load(graph).graph.input[0]
    batch = np.load(images)[: source.type.tensor_type.shape.dim[0].dim_value or None]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        np.savez(data, **{source.name: batch})
        converted = convert_to_mixed_precision(str(graph), calibration_data=str(data), keep_io_types=True)
    onnx.save(converted, out)


if __name__ == "__main__":
    main()
