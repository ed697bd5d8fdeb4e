"""Oracle: numpy's own float16."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.errors import DataError, GraphError
from calib.scales import LARGEST_SCALE, QMAX, SMALLEST_SCALE, activation_scale, weight_scales


@settings(deadline=None, derandomize=True)
@given(st.floats(min_value=QMAX * SMALLEST_SCALE, max_value=QMAX * LARGEST_SCALE))
def test_scale_is_the_least_fp16_number_that_covers_amax(amax):
    scale = activation_scale(amax, "x")
    assert float(np.float16(scale)) == scale
    assert scale >= amax / QMAX
    below = float(np.nextafter(np.float16(scale), np.float16(0)))
    assert below < amax / QMAX


@settings(deadline=None, derandomize=True)
@given(st.floats(min_value=QMAX * 2.0**-14, max_value=QMAX * LARGEST_SCALE))
def test_rounding_costs_at_most_a_thousandth_of_the_step(amax):
    assert activation_scale(amax, "x") <= amax / QMAX * (1 + 2**-10)


@pytest.mark.parametrize("amax", [0.0, -1.0, 1e-9, 1e8, float("nan"), float("inf")])
def test_ranges_without_a_legal_scale_are_refused_by_name(amax):
    with pytest.raises(DataError, match=r"tensor blocks\.0/x"):
        activation_scale(amax, "blocks.0/x")


def test_weight_scales_work_per_channel_and_keep_dead_channels_legal():
    scales = weight_scales([0.0, 1e-7, 1.27], "w")
    assert scales.dtype == np.float32
    assert list(scales[:2]) == [SMALLEST_SCALE] * 2
    assert scales[2] == np.float32(activation_scale(1.27, "w"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e8])
def test_weights_with_bad_channels_are_refused(bad):
    with pytest.raises(GraphError, match="tensor w"):
        weight_scales([1.0, bad], "w")
