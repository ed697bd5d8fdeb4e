"""The text format of TensorRT's legacy INT8 calibration cache, for users of its implicit quantization (TensorRT 10 and older).

    TRT-100300-EntropyCalibration2
    tensor name: 3c010a14

A line per tensor: the scale, amax / 127, as the eight hexadecimal digits of a big-endian IEEE 754 float32. The header names the
version and the algorithm of the calibrator; TensorRT takes a cache only from the calibrator class that it names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from calib.calibration_table import CalibrationTable
from calib.errors import InputError

VERSION = "100300"
ALGORITHM = "EntropyCalibration2"
_HEADER = re.compile(r"TRT-\d+-\w+")
_LINE = re.compile(r"(?P<tensor>.+): (?P<scale>[0-9a-f]{8})")


def cache_text(table: CalibrationTable, version: str = VERSION) -> str:
    """The cache of a table. `version` is TensorRT's as it prints it there, e.g. 8601 or 100300."""
    return format_cache({tensor: entry.scale for tensor, entry in table.tensors.items()}, version)


def format_cache(scales: Mapping[str, float], version: str = VERSION) -> str:
    """The cache of tensor -> scale."""
    lines = [f"{tensor}: {struct.pack('>f', scale).hex()}" for tensor, scale in scales.items()]
    return "\n".join([f"TRT-{version}-{ALGORITHM}", *lines, ""])


def parse_cache(text: str) -> dict[str, float]:
    """Tensor -> scale of a cache. Raises InputError for text that is none."""
    lines = text.splitlines()
    if not lines or not _HEADER.fullmatch(lines[0]):
        raise InputError("not a calibration cache of TensorRT", found=repr(lines[0][:60] if lines else ""), allowed="TRT-...")
    scales = {}
    for number, line in enumerate(lines[1:], start=2):
        found = _LINE.fullmatch(line)
        if found is None:
            raise InputError("malformed line in a calibration cache", where=f"line {number}", found=repr(line[:80]))
        (scales[found["tensor"]],) = struct.unpack(">f", bytes.fromhex(found["scale"]))
    return scales
