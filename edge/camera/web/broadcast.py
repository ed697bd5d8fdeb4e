"""Broadcasts results to the viewers of the page: each picture is encoded once, each figure written once, nothing is queued.

A viewer waits for the next tick and sends the newest result; one that is still sending skips the ticks in between. So a slow
viewer costs no memory. Ticks come less often when so many view the page that sending would take time from the network.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from calib.printable import one_line
from edge.camera.frame import Clock, Result
from edge.camera.latency_stats import KEPT_S, PARTS, LatencyHistory, finite
from edge.camera.web.jpeg import Encode
from edge.tasks.frame_answer import PanelLayout

RATE, SLOWEST_RATE = 12.0, 2.0
"""Ticks a second: pictures and answers."""
SENDS_PER_S = 400.0
"""Of all viewers together, roughly: beyond it ticks come less often."""
STALE_S = 2.0
"""The picture is marked stale without a new result for so long, or for three usual intervals if that is longer."""
BOUNDARY = b"--frame\r\n"

Notes = Callable[[], Mapping[str, str]]
"""Rows that change while the camera runs; called once a second in the page's thread."""


class Broadcast:
    """The newest result, and the streams made from it. `publish` may be called in any one thread; all else in the page's.

    `identity` are the page's rows about the build, `layout` that of the task's answers.
    """

    def __init__(
        self, identity: Mapping[str, str], layout: PanelLayout, encode: Encode, clock: Clock, notes: Notes = dict
    ) -> None:
        self._identity, self._layout, self._changing_rows = dict(identity), layout, notes
        self._encode, self._clock = encode, clock
        self._newest: tuple[Result, float] | None = None
        self._history = LatencyHistory(clock)
        self._tick = asyncio.Event()
        self._picture: tuple[int, bytes] | None = None
        self._answer: tuple[int, bytes] | None = None
        self._second = b""
        self._seconds = 0
        self._fault = ""
        self._ended = False
        self._viewers = {"picture": 0, "figures": 0}
        self.encoded = 0

    def publish(self, result: Result) -> None:
        """Store the newest result, and its latency."""
        self._history.add(result.latency)
        self._newest = result, self._clock()

    @property
    def viewers(self) -> int:
        """How many viewers read the figures."""
        return self._viewers["figures"]

    async def run(self) -> None:
        """Tick until `end`."""
        while not self._ended:
            self._update()
            self._tick.set()  # wakes all viewers that wait
            self._tick.clear()  # and none that come later
            await asyncio.sleep(self._interval_s())

    def end(self) -> None:
        """Let every stream finish."""
        self._ended = True
        self._tick.set()

    async def pictures(self) -> AsyncIterator[bytes]:
        """Parts of `multipart/x-mixed-replace; boundary=frame`, one JPEG each.

        The boundary that ends a part is sent with it: browsers show a picture when they receive its end.
        """
        yield BOUNDARY
        sent = -1
        while not self._ended:
            if self._picture is not None and self._picture[0] != sent:
                sent, part = self._picture
                yield part
            else:
                await self._tick.wait()

    async def figures(self) -> AsyncIterator[bytes]:
        """Server-sent events: about and history once, then an answer per tick and a row per second."""
        sent, second = -1, self._seconds  # before the first yield: a row may come while that is sent
        yield b"retry: 1000\n\n" + event("about", self._about()) + event("history", list(self._history.rows))
        while not self._ended:
            data = b""
            if self._seconds != second:
                second, data = self._seconds, self._second
            if self._answer is not None and self._answer[0] != sent:
                sent, data = self._answer[0], self._answer[1] + data
            if data:
                yield data
            else:
                await self._tick.wait()
        yield event("end", {})

    @contextlib.contextmanager
    def viewer(self, stream: str) -> Iterator[None]:
        """Count a viewer of a stream ("picture" or "figures") while the block runs."""
        self._viewers[stream] += 1
        try:
            yield
        finally:
            self._viewers[stream] -= 1

    def _interval_s(self) -> float:
        return min(1 / SLOWEST_RATE, max(1 / RATE, sum(self._viewers.values()) / SENDS_PER_S))

    def _update(self) -> None:
        row = self._history.close_second()
        if row is not None:
            self._seconds += 1
            self._second = event("second", {"row": row, **self._state()}) if self.viewers else b""
        if self._newest is None:
            return
        result = self._newest[0]
        if self.viewers and (self._answer is None or self._answer[0] != result.number):
            self._answer = result.number, event("result", self._figures(result))
        if self._viewers["picture"] and (self._picture is None or self._picture[0] != result.number):
            self._picture = result.number, self._part(result)

    def _part(self, result: Result) -> bytes:
        try:
            jpeg = self._encode(result.frame.pixels)
            self.encoded += 1
            self._fault = ""
        except Exception as error:  # noqa: BLE001  # whatever an image library raises, the figures continue without the picture
            self._fault = f"cannot be encoded: {' '.join(str(error).split())[:200]}"
            return b""
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\nX-Result: {result.number}\r\n\r\n"
        return head.encode() + jpeg + b"\r\n" + BOUNDARY

    def _about(self) -> dict[str, Any]:
        return {
            "identity": list(self._identity.items()),
            **vars(self._layout),
            "parts": [part.removesuffix("_ms") for part in PARTS],
            "kept_s": KEPT_S,
            **self._state(),
        }

    def _state(self) -> dict[str, Any]:
        """Whether the picture is stale, and the rows that change."""
        quiet_s = None if self._newest is None else self._clock() - self._newest[1]
        usual_s = 1 / self._newest[0].fps if self._newest is not None and self._newest[0].fps > 0 else 0.0
        stale = quiet_s is not None and quiet_s > max(STALE_S, 3 * min(usual_s, 20.0))
        return {
            "quiet_s": None if quiet_s is None else round(quiet_s, 1),
            "stale": stale,
            "viewers": self.viewers,
            "notes": list(self._notes().items()),
        }

    def _notes(self) -> dict[str, str]:
        try:
            notes = {str(name): str(text) for name, text in self._changing_rows().items()}
        except Exception as error:  # noqa: BLE001  # a failing note must not end the page
            notes = {"notes": f"not available: {' '.join(str(error).split())[:200]}"}
        return {**notes, "picture": self._fault} if self._fault else notes

    def _figures(self, result: Result) -> dict[str, Any]:
        panel = result.answer.panel()
        return {
            "number": result.number,
            "frame": result.frame.number,
            "dropped": result.dropped,
            "fps": finite(result.fps, 5),
            "title": panel.title,
            "figure": panel.figure,
            "bars": [[bar.name, None if bar.share is None else finite(bar.share, 5), bar.text] for bar in panel.bars],
            "leader": panel.leader,
        }


def event(name: str, value: object) -> bytes:
    """A server-sent event whose data is JSON, which contains no line break."""
    return f"event: {name}\ndata: {json.dumps(_shown(value), separators=(',', ':'), allow_nan=False)}\n\n".encode()


def _shown(value: object) -> object:
    """The same value with every text on one line, hidden characters as escapes: names and addresses come from files."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, (list, tuple)) else value
