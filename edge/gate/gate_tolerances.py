"""Default tolerances of `ufovit gate --update` for the quantities that every task has, each with its reason.

Answers are a sample; their tolerances belong to the task (its own `gate_tolerances`). The other quantities are functions of
their inputs, so that a tolerance covers only what other inputs of the same kind change.
"""

from __future__ import annotations

from edge.tasks.gate_row import Tolerance

QUANTITIES = frozenset(("scale_largest", "scale_mean", "xnorm_headroom", "xnorm_floor", "share", "size", "latency"))
"""Quantities with a tolerance besides the task's. The two verdicts have none: they are absolute."""
SCALE_BITS = 0.6
SCALE_MEAN_BITS = 0.045
HEADROOM_BITS = 2.25
FLOOR_BITS = 4.25
SHARE = {"trt": 0.01}
SHARE_ELSEWHERE = 5e-6
SIZE = {"trt": 0.10}
SIZE_ELSEWHERE = 0.05
LATENCY = 0.10
_TIMED = "TensorRT chooses kernels by timing them, so that two builds"


def common_tolerances(backend: str) -> dict[str, Tolerance]:
    """A tolerance for each of QUANTITIES; bits, shares, or relative for size and latency. `backend` built the engine."""
    timed = backend in SHARE
    return {
        "scale_largest": Tolerance(
            SCALE_BITS,
            "Other calibration images, 128 at a time, moved no scale of the shipped network by more than 0.50 bits; twice as "
            "large is one bit.",
        ),
        "scale_mean": Tolerance(
            SCALE_MEAN_BITS,
            "Other calibration images, 128 at a time, moved the shipped network's by up to 0.036 bits in 200 rebuilds; eight "
            "images move them further.",
        ),
        "xnorm_headroom": Tolerance(
            HEADROOM_BITS, "Other images may move the exponent of a fold by one, which is two bits of a sum of squares."
        ),
        "xnorm_floor": Tolerance(
            FLOOR_BITS, "One step of a fold's exponent, two bits, and the smallest vector of other images, two bits more."
        ),
        "share": Tolerance(
            SHARE.get(backend, SHARE_ELSEWHERE),
            f"{_TIMED} may hide a small layer in a generated kernel."
            if timed
            else "The same graph and library give the same layers whatever the scales; this is less than the smallest layer.",
        ),
        "size": Tolerance(
            SIZE.get(backend, SIZE_ELSEWHERE),
            f"{_TIMED} hold kernels of other sizes."
            if timed
            else "Builds from other calibration images differ by 1 to 2 %; a layer stored twice or in another type adds more.",
        ),
        "latency": Tolerance(
            LATENCY, "Clocks and temperature move a ratio taken in turn by some percent; a lost INT8 kernel more."
        ),
    }
