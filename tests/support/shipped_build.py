"""The INT8 build of the shipped network, made once in a test run: for TensorRT-RTX, or for the CPU where that is missing."""

import importlib.util

from run_once import make_once

from edge.assets import SHIPPED_MODEL
from edge.cli import run

TARGET = "rtx" if importlib.util.find_spec("tensorrt_rtx") else "cpu"
CALIBRATION, EVALUATION = 512, 300


def arguments(folder):
    """The command line of the build."""
    return [
        "build", SHIPPED_MODEL, "int8", "--target", TARGET, "--eval-images", str(EVALUATION),
        "--calib-images", str(CALIBRATION), "--max-drop", "3", "--out", str(folder),
    ]  # fmt: skip


def make_shipped_build(factory):
    """The folder; copy it before changing anything in it."""

    def build(folder):
        assert run(arguments(folder / "build")) == 0

    return make_once(factory, "shipped", build) / "build"
