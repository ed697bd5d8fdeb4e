"""Oracle: IEEE 754 single precision by hand, from sign, exponent and mantissa."""

import numpy as np
import pytest

from calib.calibration_table import TensorScale
from calib.trt_calibration_cache import format_cache

# value, its bits: sign 1, exponent 8 (bias 127), mantissa 23
KNOWN = {
    1.0: "3f800000",  # 2^0
    2.0: "40000000",  # 2^1
    0.5: "3f000000",  # 2^-1
    1.5: "3fc00000",  # 1.1b
    2.0**-19: "36000000",  # exponent 108
    65504.0: "477fe000",  # the largest FP16 number
    1 / 127: "3c010204",  # 2^-7 * 1.00787..., rounded to the nearest
    np.nextafter(np.float32(1), np.float32(2)): "3f800001",  # one unit in the last place
}


@pytest.mark.parametrize(("value", "digits"), KNOWN.items())
def test_known_numbers(value, digits):
    assert format_cache({"t": float(value)}) == f"TRT-100300-EntropyCalibration2\nt: {digits}\n"


def scales_in(text):
    """Tensor -> scale of a cache: each bit weighed as the standard weighs it."""
    scales = {}
    for line in text.splitlines()[1:]:
        tensor, _, digits = line.rpartition(": ")
        bits = int(digits, 16)
        sign, exponent, mantissa = bits >> 31, bits >> 23 & 0xFF, bits & 0x7FFFFF
        scales[tensor] = (-1) ** sign * (1 + mantissa / 2**23) * 2.0 ** (exponent - 127)
    return scales


@pytest.mark.parametrize(("value", "digits"), KNOWN.items())
def test_the_parser_of_these_tests_knows_the_numbers(value, digits):
    assert scales_in(f"TRT-8601-EntropyCalibration2\nt: {digits}\n") == {"t": float(np.float32(value))}


def test_byte_order_matters():
    """The control: the bytes of 1.0 the other way round are another number."""
    assert scales_in("TRT-8601-EntropyCalibration2\nt: 0000803f\n")["t"] != 1.0


def test_scales_survive_the_round_trip():
    names = ["image", "/blocks.0/mlp/Gelu_output_0", "(Unnamed Layer* 3) [Shuffle]_output", "odd: name"]
    tensors = {name: TensorScale.from_amax(0.3 * (i + 1), name, "mse") for i, name in enumerate(names)}
    text = format_cache({name: entry.scale for name, entry in tensors.items()}, "8601")
    assert text.startswith("TRT-8601-EntropyCalibration2\nimage: ")
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1 + len(names)
    assert scales_in(text) == {name: entry.scale for name, entry in tensors.items()}, "scales fit FP16, hence FP32, exactly"
    assert list(scales_in(text)) == names, "in the table's order"
