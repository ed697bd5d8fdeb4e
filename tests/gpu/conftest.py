"""Tests marked `gpu` are skipped, with the reason, where torch finds no CUDA device."""

import pytest
import torch


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} finds no CUDA device")
