"""The page: live picture, answer, speed and the build's identity in a browser. See `edge/camera/web/static`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from calib.errors import MissingError, UsageError
from edge.camera.frame import Clock, Result
from edge.camera.web.bind_address import LOOPBACK, host_check, is_loopback, listen, url_of
from edge.camera.web.broadcast import Broadcast, Notes
from edge.camera.web.jpeg import jpeg_encoder
from edge.camera.web.token import TokenAuth, check_token, make_token
from edge.tasks.frame_answer import PanelLayout

if TYPE_CHECKING:
    from edge.camera.web.server import WebServer


class Dashboard:
    """A `Sink` that shows results to the viewers of the page, once `start` has returned its URL.

    Args:
        identity: rows that say what runs. The row "verdict" also gives the page its badge: green if it begins with "pass", red
            with "fail"; a row "weights" is shown as a warning.
        host, port: as `parse_address` gives them; port 0 is any free one.
        token: what viewers must give. None on loopback: nothing; None elsewhere: one is made.
        notes: further rows that change, such as the audit's agreement.
    """

    def __init__(
        self,
        identity: Mapping[str, str],
        layout: PanelLayout,
        host: str = LOOPBACK,
        port: int = 8080,
        token: str | None = None,
        *,
        notes: Notes = dict,
        clock: Clock = time.monotonic,
    ) -> None:
        try:
            import starlette  # noqa: F401  # whether it is installed
            import uvicorn  # noqa: F401  # likewise
        except ImportError as error:
            command = "pip install 'ufovit-edge[camera]'"
            raise MissingError("the page needs starlette and uvicorn", found=error, next_command=command) from error
        self._host, self._port = host, port
        self.token = make_token() if token is None and not is_loopback(host) else token
        if self.token is not None:
            check_token(self.token)
        self._clock = clock
        self.broadcast = Broadcast(identity, layout, jpeg_encoder(), clock, notes)
        self._server: WebServer | None = None

    def start(self) -> str:
        """Serve, and return the URL for a browser. Raises UsageError or MissingError, as for a port in use."""
        from edge.camera.web.routes import create_app
        from edge.camera.web.server import WebServer

        if self._server is not None:
            raise UsageError("the page was started before", allowed="one start of one Dashboard")
        listening = listen(self._host, self._port)
        port = int(listening.getsockname()[1])
        app = create_app(self.broadcast, TokenAuth(self.token, port, self._clock), host_check(self._host))
        self._server = WebServer(app, self.broadcast, listening)
        self._server.start()
        return url_of(self._host, port)

    def __call__(self, result: Result, /) -> None:
        """Publish the newest result; pictures are encoded in the page's own thread, and only while there are viewers."""
        self.broadcast.publish(result)

    def close(self) -> None:
        """End every viewer's stream and the thread, within a second; a second call does nothing."""
        if self._server is not None:
            self._server.stop()
