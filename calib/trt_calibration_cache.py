"""Write TensorRT's legacy INT8 calibration cache, for users of its implicit quantization (TensorRT 10 and older).

    TRT-100300-EntropyCalibration2
    tensor name: 3c010a14

A line per tensor: the scale, amax / 127, as the eight hexadecimal digits of a big-endian IEEE 754 float32. The header names the
version and the calibrator's algorithm; TensorRT accepts a cache only from the calibrator class that it names.
"""

import struct
from collections.abc import Mapping

VERSION = "100300"
ALGORITHM = "EntropyCalibration2"


def format_cache(scales: Mapping[str, float], version: str = VERSION) -> str:
    """The cache of tensor -> scale. `version` is TensorRT's as it prints it in a cache, e.g. 8601 or 100300."""
    lines = [f"{tensor}: {struct.pack('>f', scale).hex()}" for tensor, scale in scales.items()]
    return "\n".join([f"TRT-{version}-{ALGORITHM}", *lines, ""])
