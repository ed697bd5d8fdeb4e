"""Default tolerances of `ufovit gate --update` for the quantities that every task has, each with its reason.

They are functions of their inputs: a tolerance covers only what other inputs of the same kind change.
"""

from edge.tasks.gate_row import Tolerance

QUANTITIES = frozenset(("scale_largest", "scale_mean", "xnorm_headroom", "xnorm_floor", "share", "size", "latency"))
"""Quantities with a tolerance besides the task's. The two verdicts have none: they are absolute."""
STEP_QUANTITIES = frozenset(("steps", "reformats", "pads", "moved_bytes"))
"""Those of the engine's steps, which only a baseline with steps has a tolerance for."""

NETWORK_QUANTITIES = frozenset(("network_headroom", "network_islands", "emulated_sqnr"))
"""Those of a baseline with the certificate of the whole network; its verdict and the places not judged are absolute."""


def common_tolerances(backend: str) -> dict[str, Tolerance]:
    """A tolerance for each of QUANTITIES and STEP_QUANTITIES. `backend` built the engine.

    In bits, shares, relative for size, latency and bytes, as a share of the baseline's steps for numbers of steps.
    """
    timed = backend == "trt"
    return _step_tolerances(timed=timed) | {
        "scale_largest": Tolerance(
            0.6,
            "Other calibration images, 128 at a time, moved no scale of the shipped network by more than 0.50 bits; twice as "
            "large is one bit.",
        ),
        "scale_mean": Tolerance(
            0.045,
            "Other calibration images, 128 at a time, moved the shipped network's by up to 0.036 bits in 200 rebuilds; eight "
            "images move them further.",
        ),
        "xnorm_headroom": Tolerance(
            2.25, "Other images may move the exponent of a fold by one, which is two bits of a sum of squares."
        ),
        "xnorm_floor": Tolerance(
            4.25, "One step of a fold's exponent, two bits, and the smallest vector of other images, two bits more."
        ),
        "share": Tolerance(
            0.01 if timed else 5e-6,
            "TensorRT chooses kernels by timing them, so that two builds may hide a small layer in a generated kernel."
            if timed
            else "The same graph and library give the same layers whatever the scales; this is less than the smallest layer.",
        ),
        "size": Tolerance(
            0.10 if timed else 0.05,
            "TensorRT chooses kernels by timing them, so that two builds hold kernels of other sizes."
            if timed
            else "Builds from other calibration images differ by 1 to 2 %; a layer stored twice or in another type adds more.",
        ),
        "latency": Tolerance(
            0.10, "Clocks and temperature move a ratio taken in turn by some percent; a lost INT8 kernel more."
        ),
    }


def _step_tolerances(*, timed: bool) -> dict[str, Tolerance]:
    """Of STEP_QUANTITIES; `timed`: the builder chooses kernels by timing them."""
    share = 0.05 if timed else 0.01
    reason = (
        "TensorRT chooses kernels by timing them, so that two builds may fuse other layers."
        if timed
        else "The same graph and library give the same steps whatever the scales; one step more in each block is 4 %."
    )
    return dict.fromkeys(("steps", "reformats", "pads"), Tolerance(share, reason)) | {
        "moved_bytes": Tolerance(share, f"{reason} So do the bytes that they move.")
    }


def network_tolerances() -> dict[str, Tolerance]:
    """A tolerance for each of NETWORK_QUANTITIES; bits, sites, dB."""
    return {
        "network_headroom": Tolerance(
            1.25, "Other images may move the exponent of a fold by one, and where no bound is proven they reach further."
        ),
        "network_islands": Tolerance(0.0, "An island costs Casts, and is chosen by ranges that keep a margin of bits already."),
        "emulated_sqnr": Tolerance(
            12.0, "Of 16 images each, eight sets gave the shipped network 59 to 69 dB; an overflow leaves less than 20."
        ),
    }
