"""synthetic://: a moving picture that needs neither camera nor OpenCV, with the faults of a camera on request.

    size=640x480    of the picture
    fps=30          rate at which it is played
    frames=0        clean end after so many; 0 for none
    seed=0          another seed, other colours and another path

Faults, each 0 for none: `empty=N` every Nth frame has no pixels, `resize=N` the size changes to half and back every N frames,
`lose=N` the source is lost at frame N (opened again, it starts anew), `hang=N` the read of frame N never returns.
"""

from __future__ import annotations

import threading

import numpy as np

from calib.errors import InputError
from edge.camera.sources.source import SourceLost
from edge.camera.sources.source_options import count_of, fps_of, parse_parameters, size_of
from edge.images.preprocess import Uint8

_COUNTS = ("frames", "seed", "empty", "resize", "lose", "hang")


class Synthetic:
    """A bright square that wanders over a gradient: the same pixels for the same parameters and number, always.

    `rest` is what follows `synthetic://`. Raises InputError for parameters that it does not have.
    """

    live = False

    def __init__(self, rest: str, *, loop: bool = False) -> None:
        place, _, query = rest.partition("?")
        if place:
            raise InputError(
                "synthetic source is not understood", where="--source", found=place, allowed="synthetic://?size=..."
            )
        values = parse_parameters(query, ("size", "fps", *_COUNTS))
        self.name = f"synthetic://?{query}" if query else "synthetic://"
        self._size = size_of(values, (640, 480)) or (640, 480)
        self.fps = fps_of(values, 30.0)
        counts = {name: count_of(values, name) for name in _COUNTS}
        self._frames, self._empty, self._resize = (counts[name] for name in ("frames", "empty", "resize"))
        self._lose, self._hang = counts["lose"], counts["hang"]
        self._loop = loop
        rng = np.random.default_rng(counts["seed"])
        self._colour = rng.integers(128, 256, 3).astype(np.uint8)
        self._start, self._step = rng.random(2), 0.01 + 0.02 * rng.random(2)
        self._backgrounds: dict[tuple[int, int], Uint8] = {}
        self._number = 0
        self._closed = threading.Event()

    def read(self) -> Uint8 | None:
        """See `Source`."""
        if self._frames and self._number == self._frames:
            if not self._loop:
                return None
            self._number = 0
        number = self._number
        self._number += 1
        if self._lose and number >= self._lose:
            raise SourceLost("the synthetic source was lost, as asked for", where=self.name)
        if self._hang and number == self._hang:
            self._closed.wait()
            raise SourceLost("the synthetic source hung, as asked for", where=self.name)
        if self._empty and number % self._empty == self._empty - 1:
            return np.zeros((0, 0, 3), np.uint8)
        halved = self._resize and number // self._resize % 2
        width, height = (max(1, side // 2) for side in self._size) if halved else self._size
        return self._draw(width, height, number)

    def close(self) -> None:
        """See `Source`."""
        self._closed.set()

    def _draw(self, width: int, height: int, number: int) -> Uint8:
        pixels: Uint8 = self._background(width, height).copy()
        side = max(1, min(width, height) // 4)
        phase = (self._start + number * self._step) % 2.0
        there_and_back = np.minimum(phase, 2.0 - phase)
        left, top = (int(share * room) for share, room in zip(there_and_back, (width - side, height - side), strict=True))
        pixels[top : top + side, left : left + side] = self._colour
        return pixels

    def _background(self, width: int, height: int) -> Uint8:
        if (width, height) not in self._backgrounds:
            across, down = np.linspace(0, 120, width), np.linspace(0, 120, height)
            flat = np.zeros((height, width))
            planes = (flat + across, flat + down[:, None], 60 + flat)
            self._backgrounds[width, height] = np.stack(planes, axis=2).astype(np.uint8)
        background: Uint8 = self._backgrounds[width, height]
        return background
