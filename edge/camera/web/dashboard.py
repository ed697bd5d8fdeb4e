"""The page: live picture, answer, speed and the build's identity in a browser. See `edge/camera/web/static`.

page = Dashboard(identity, layout, host, port, token)
url = page.start()      # refuses a port in use at once
page(result)            # for every result; returns at once
page.close()
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from calib.errors import MissingError, UsageError
from edge.camera.frame import Clock, Result
from edge.camera.web.bind_address import LOOPBACK, host_check, is_loopback, listen, url_of
from edge.camera.web.broadcast import Broadcast, Notes, PageContent
from edge.camera.web.jpeg import jpeg_encoder
from edge.camera.web.token import TokenAuth, check_token, make_token
from edge.tasks.frame_answer import PanelLayout

if TYPE_CHECKING:
    from edge.camera.web.server import WebServer

PORT = 8080


class Dashboard:
    """A `Sink` that shows results to the viewers of the page.

    Args:
        identity: rows that say what runs: model, precision, verdict, digest of the engine, what it ran on. The row "verdict"
            also gives the page its badge: green if it begins with "pass", red with "fail"; a row "weights" is shown as a
            warning.
        layout: of the answers, from the task.
        host, port: as `parse_address` gives them; port 0 is any free one.
        token: what viewers must give. None on loopback: nothing; None elsewhere: one is made. See `token` below.
        notes: called once a second in the page's thread: further rows that change, such as the audit's agreement.
        clock: seconds, the same clock as that of the frames.

    Raises UsageError for an unsuitable token and MissingError without starlette, uvicorn or a JPEG encoder.
    """

    def __init__(
        self,
        identity: Mapping[str, str],
        layout: PanelLayout,
        host: str = LOOPBACK,
        port: int = PORT,
        token: str | None = None,
        *,
        notes: Notes | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        _check_libraries()
        self._host, self._port = host, port
        self.token = make_token() if token is None and not is_loopback(host) else token
        if self.token is not None:
            check_token(self.token)
        self._clock = clock
        self._broadcast = Broadcast(PageContent(dict(identity), layout, notes or dict), jpeg_encoder(), clock)
        self._server: WebServer | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(self) -> str:
        """Serve, and return the URL for a browser. Raises UsageError or MissingError, as for a port in use."""
        from edge.camera.web.routes import create_app
        from edge.camera.web.server import WebServer

        with self._lock:
            if self._closed or self._server is not None:
                raise UsageError("the page was started before", allowed="one start of one Dashboard")
            listening = listen(self._host, self._port)
            port = int(listening.getsockname()[1])
            app = create_app(self._broadcast, TokenAuth(self.token, port, self._clock), host_check(self._host))
            self._server = WebServer(app, self._broadcast, listening)
            self._server.start()
        return url_of(self._host, port)

    def __call__(self, result: Result, /) -> None:
        """Publish the newest result; pictures are encoded in the page's own thread, and only while there are viewers."""
        self._broadcast.publish(result)

    def close(self) -> None:
        """End every viewer's stream and the thread, within a second; a second call does nothing."""
        with self._lock:
            self._closed = True
            if self._server is not None:
                self._server.stop()

    @property
    def viewers(self) -> int:
        """How many viewers there are now."""
        return self._broadcast.viewers

    @property
    def encoded(self) -> int:
        """How many pictures were encoded so far."""
        return self._broadcast.encoded


def _check_libraries() -> None:
    try:
        import starlette  # noqa: F401  # whether it is installed
        import uvicorn  # noqa: F401  # likewise
    except ImportError as error:
        raise MissingError(
            "the page needs starlette and uvicorn", found=error, next_command="pip install 'ufovit-edge[camera]'"
        ) from error
