"""The typed graph is compared with the graph before it was typed, batch by batch. Oracle: `sqnr_db` of all images at once."""

from pathlib import Path

import numpy as np
import pytest

from calib.errors import VerdictError
from calib.metrics import sqnr_db
from edge.numeric_tolerances import TYPED_FP16_SQNR_DB, TYPED_INT8_LOSS_DB
from edge.pipeline.steps.type_fp16 import check_typing
from edge.runtime.runner import FakeRunner

IMAGES = np.random.default_rng(2).normal(size=(12, 3, 4, 4)).astype(np.float32)
NOISE = np.random.default_rng(3).normal(size=IMAGES.shape).astype(np.float32)


def runner(error=0.0, index=0):
    """Two outputs: the images with noise, of which every image gets its own, and integers."""
    noises = {image.tobytes(): noise for image, noise in zip(IMAGES, NOISE, strict=True)}

    def answer(images):
        noise = np.stack([noises[image.tobytes()] for image in images])
        return images + np.float32(error) * noise, np.full(len(images), index)

    return FakeRunner((3, 4, 4), 2, answer)


def check(before, graph, typed):
    check_typing(Path("model.onnx"), ["map", "index"], (before, graph, typed), np.split(IMAGES, [5, 10]))


def error_of(decibels):
    """Share of the noise that leaves this SQNR."""
    return 10 ** ((sqnr_db(IMAGES, IMAGES + NOISE) - decibels) / 20)


def test_typing_may_cost_what_the_tolerances_allow():
    exact = runner()
    check(exact, exact, runner(error_of(TYPED_FP16_SQNR_DB + 0.1), index=1))
    assert len(exact.batches) == 3, "one run of a graph that was not quantized"
    check(runner(), runner(error_of(20)), runner(error_of(20 - TYPED_INT8_LOSS_DB + 0.1)))


@pytest.mark.parametrize("graph_db", [300, 20])
def test_more_is_refused_with_the_figure(graph_db):
    least = min(TYPED_FP16_SQNR_DB, graph_db - TYPED_INT8_LOSS_DB)
    with pytest.raises(VerdictError, match=rf"SQNR of output map {least - 0.2:.1f} dB[\s\S]*at least {least:.1f} dB"):
        check(runner(), runner(0.0 if graph_db == 300 else error_of(graph_db)), runner(error_of(least - 0.2)))


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_refused(error):
    for graph in (runner(), runner(error_of(-400)), runner(error)):
        with pytest.raises(VerdictError, match="output map nan dB"):
            check(runner(), graph, runner(error))
