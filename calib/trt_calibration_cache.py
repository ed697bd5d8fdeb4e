"""The text format of TensorRT's legacy INT8 calibration cache, for users of its implicit quantization (TensorRT 10 and older).

    TRT-100300-EntropyCalibration2
    tensor name: 3c010a14

A line per tensor: the scale, amax / 127, as the eight hexadecimal digits of a big-endian IEEE 754 float32. The header names the
version and the algorithm of the calibrator; TensorRT takes a cache only from the calibrator class that it names.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from calib.calibration_table import CalibrationTable

VERSION = "100300"
ALGORITHM = "EntropyCalibration2"


def cache_text(table: CalibrationTable, version: str = VERSION) -> str:
    """The cache of a table. `version` is TensorRT's as it prints it there, e.g. 8601 or 100300."""
    return format_cache({tensor: entry.scale for tensor, entry in table.tensors.items()}, version)


def format_cache(scales: Mapping[str, float], version: str = VERSION) -> str:
    """The cache of tensor -> scale."""
    lines = [f"{tensor}: {struct.pack('>f', scale).hex()}" for tensor, scale in scales.items()]
    return "\n".join([f"TRT-{version}-{ALGORITHM}", *lines, ""])
