"""Outputs that no comparison can judge, because they show nothing of the network. numpy alone."""

import numpy as np
import numpy.typing as npt

ZERO, SAME = "zero for every image", "the same for every image"


def why_constant(output: npt.NDArray[np.generic]) -> str:
    """Why an output (n, ...) of the reference cannot serve to judge: ZERO, or SAME for several images; "" where it can.

    Of a zero output SQNR and cosine are 0/0, and any two answers agree. One that is the same for every image does not depend on
    the image: an engine that computes anything there agrees with it by its biases alone.
    """
    if not output.any():
        return ZERO
    same = len(output) > 1 and all(np.array_equal(output[0], image) for image in output[1:])  # ends at the first that differs
    return SAME if same else ""
