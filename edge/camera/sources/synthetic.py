"""synthetic://: a moving picture that needs neither camera nor OpenCV, with a camera's faults on request.

It ends after `frames=N`; `seed=N` is that of colours and path. Faults: `empty=N` every Nth frame has no pixels, `resize=N` the
size changes to half and back every N frames, `lose=N` the source is lost at frame N (and starts over when opened again),
`hang=N` the read of frame N never returns. 0: never.
"""

import threading
from functools import lru_cache

import numpy as np

from calib.errors import UsageError
from edge.camera.frame import SourceLost
from edge.camera.sources.source_options import parse_count, parse_fps, parse_parameters, parse_size
from edge.images.preprocess import Uint8

_COUNTS = ("frames", "seed", "empty", "resize", "lose", "hang")


class Synthetic:
    """A bright square moving over a gradient: the same pixels for the same parameters and frame number, always."""

    live = False

    def __init__(self, rest: str, *, loop: bool = False) -> None:
        host, _, query = rest.partition("?")
        if host:
            raise UsageError("invalid synthetic source", where="--source", found=host, allowed="synthetic://?size=...")
        parameters = parse_parameters(query, ("size", "fps", *_COUNTS))
        self.name = f"synthetic://?{query}" if query else "synthetic://"
        self._size = parse_size(parameters) or (640, 480)
        self.fps: float | None = parse_fps(parameters) or 30.0
        self._counts = {name: parse_count(parameters, name) for name in _COUNTS}
        self._loop = loop
        rng = np.random.default_rng(self._counts["seed"])
        self._colour = rng.integers(128, 256, 3).astype(np.uint8)
        self._start, self._step = rng.random(2), 0.01 + 0.02 * rng.random(2)
        self._number = 0
        self._closed = threading.Event()

    def read(self) -> Uint8 | None:
        """See `Source`."""
        frames, _, empty, resize, lose, hang = self._counts.values()
        if frames and self._number == frames:
            if not self._loop:
                return None
            self._number = 0
        number = self._number
        self._number += 1
        if lose and number >= lose:
            raise SourceLost("the synthetic source was lost, as requested", where=self.name)
        if hang and number == hang:
            self._closed.wait()
            raise SourceLost("the synthetic source hung, as requested", where=self.name)
        if empty and number % empty == empty - 1:
            return np.zeros((0, 0, 3), np.uint8)
        halved = resize and number // resize % 2
        width, height = (max(1, side // 2) for side in self._size) if halved else self._size
        return self._draw(width, height, number)

    def close(self) -> None:
        """See `Source`."""
        self._closed.set()

    def _draw(self, width: int, height: int, number: int) -> Uint8:
        pixels: Uint8 = _gradient(width, height).copy()
        side = max(1, min(width, height) // 4)
        phase = (self._start + number * self._step) % 2.0
        position = np.minimum(phase, 2.0 - phase)  # to the far edge and back
        left, top = (int(share * room) for share, room in zip(position, (width - side, height - side), strict=True))
        pixels[top : top + side, left : left + side] = self._colour
        return pixels


@lru_cache(maxsize=2)
def _gradient(width: int, height: int) -> Uint8:
    across, down = np.linspace(0, 120, width), np.linspace(0, 120, height)
    flat = np.zeros((height, width))
    gradient: Uint8 = np.stack((flat + across, flat + down[:, None], 60 + flat), axis=2).astype(np.uint8)
    return gradient
