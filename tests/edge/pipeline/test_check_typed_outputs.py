"""What typing may take from an output. Oracle: errors of known power, written down in numpy."""

from pathlib import Path

import numpy as np
import pytest

from calib.errors import VerdictError
from edge.pipeline.steps.type_fp16 import check_typing

IMAGES = 32


def outputs(rng, *noises):
    """Float outputs (IMAGES, 10), and each of them with noise of these amplitudes (IMAGES,) or scalars."""
    exact = rng.normal(size=(IMAGES, 10)).astype(np.float32)
    errors = (rng.normal(size=exact.shape) * np.reshape(noise, (-1, 1)) for noise in noises)
    return exact, *((exact + error).astype(np.float32) for error in errors)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def one_image():
    """Amplitudes of the noise before and after typing: one image has most of the power, and gets more."""
    before = np.full(IMAGES, 0.03)
    before[5] = 0.5
    after = before.copy()
    after[5] = 2.0
    return before, after


def check(exact, graph, typed):
    runners = {id(output): lambda rows, output=output: (output[rows],) for output in (exact, graph, typed)}
    images = np.arange(IMAGES)
    check_typing(Path("model.onnx"), ["y"], [runners[id(output)] for output in (exact, graph, typed)], np.split(images, [20]))


def test_one_image_does_not_decide_for_an_int8_graph(rng, one_image):
    exact, graph, typed = outputs(rng, *one_image)
    check(exact, graph, typed)
    check(exact, graph, graph)


@pytest.mark.parametrize("fault", ["not a number", "zero", "doubled", "sign", "one channel", "noise", "other images"])
def test_a_fault_is_found_beside_one_noisy_image(rng, one_image, fault):
    exact, graph, typed = outputs(rng, *one_image)
    if fault == "not a number":
        typed[5, 0] = np.nan
    elif fault == "one channel":
        typed[:, 3] = 0
    elif fault == "noise":
        typed = outputs(np.random.default_rng(0), one_image[0], 2 * one_image[0])[2]
    else:
        typed = {"zero": 0 * typed, "doubled": 2 * typed, "sign": -typed, "other images": typed[::-1].copy()}[fault]
    with pytest.raises(VerdictError, match="differ too much"):
        check(exact, graph, typed)


def test_the_median_does_not_excuse_an_fp16_graph(rng, one_image):
    exact, typed = outputs(rng, np.where(np.arange(IMAGES) == 5, 2.0, 0.0))
    with pytest.raises(VerdictError, match="differ too much"):
        check(exact, exact, typed)
