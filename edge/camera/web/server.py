"""uvicorn in a thread of its own: no signal handlers, no log, an end within a second, and bounds on slow and idle peers."""

import asyncio
import contextlib
import socket
import threading
import time
import weakref
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calib.errors import MissingError
from edge.camera.web.broadcast import Broadcast

MAX_CONNECTIONS = 128
"""Beyond it requests are answered with 503; beyond twice as many, connections are closed at once."""
STALLED_S = 15.0
"""A viewer that reads nothing for so long is disconnected."""
REQUEST_S = 10.0
"""A connection that sends no complete request for so long is closed."""
MAX_HEADER_BYTES = 16 * 1024
"""Bytes of a request's line and headers."""
_START_S = 10.0
_CLOSE_TURNS = 50
"""Of 10 ms: how long connections may take to close at the end."""


class _Connection:
    """An accepted socket, with at most one deadline. Used in the thread of the event loop."""

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = weakref.ref(accepted)  # the transport owns and closes it
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        accepted = self._socket()
        return accepted is not None and accepted.fileno() != -1

    def set_deadline(self, seconds: float | None) -> None:
        """Shut down after so many seconds, unless this is called again before; None: never."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None and self.open:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self.shut_down)

    def shut_down(self) -> None:
        """End both directions; the transport sees it and discards what it has not sent."""
        accepted = self._socket()
        if accepted is not None:
            with contextlib.suppress(OSError):  # closed already
                accepted.shutdown(socket.SHUT_RDWR)


class BoundedListener(socket.socket):
    """A listening socket that bounds how many connections are open, and how long each may take to send a request."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self.setblocking(False)
        self._connections: dict[tuple[str, int], _Connection] = {}

    def accept(self) -> tuple[socket.socket, Any]:
        """See `socket.socket`; a connection beyond the bound is closed."""
        accepted, address = super().accept()
        while len(self.connections()) >= 2 * MAX_CONNECTIONS:
            accepted.close()
            accepted, address = super().accept()
        connection = self._connections[address[:2]] = _Connection(accepted)
        connection.set_deadline(REQUEST_S)
        return accepted, address

    def connections(self) -> list[_Connection]:
        """Those that are open."""
        for address, connection in list(self._connections.items()):
            if not connection.open:
                connection.set_deadline(None)
                del self._connections[address]
        return list(self._connections.values())

    def with_deadlines(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application: every `send` has STALLED_S, because uvicorn's waits while the peer's buffers are full."""

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            connection = self._connections.get(tuple(scope.get("client") or ()))
            if connection is None:  # closed since the request
                return

            async def send_in_time(message: Message) -> None:
                connection.set_deadline(STALLED_S)
                await send(message)
                connection.set_deadline(None)

            connection.set_deadline(None)
            try:
                await app(scope, receive, send_in_time)
            finally:
                connection.set_deadline(REQUEST_S)

        return respond


class WebServer:
    """Serves an application on a listening socket, which it closes, and runs the broadcast as long, in its own thread."""

    def __init__(self, app: ASGIApp, broadcast: Broadcast, listening: socket.socket) -> None:
        self._listener = BoundedListener(listening)
        self._broadcast = broadcast
        config = uvicorn.Config(
            self._listener.with_deadlines(app),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,  # who claims to speak for another address is not believed
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=0,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="ufovit-page", daemon=True)
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start the thread; returns when requests are answered. Raises MissingError if that takes too long."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            if self._server.started:
                return
            time.sleep(0.01)
        self.stop()
        raise MissingError("the page did not start", found=self._failure, next_command="run without --serve")

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the streams, then the thread; a second call does nothing."""
        self._server.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the thread has ended
                self._loop.call_soon_threadsafe(self._broadcast.end)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # uvicorn leaves with SystemExit; `start` reports it
            self._failure = error
        finally:
            self._listener.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        broadcast = asyncio.ensure_future(self._broadcast.run())
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            broadcast.cancel()
            for _ in range(_CLOSE_TURNS):
                connections = self._listener.connections()
                if not connections:
                    break
                for connection in connections:
                    connection.shut_down()
                await asyncio.sleep(0.01)  # the transports see it and close
            await asyncio.gather(broadcast, return_exceptions=True)
