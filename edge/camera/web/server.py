"""uvicorn in a thread of its own: no signal handlers, no log, bounded connections, and an end within a second."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from calib.errors import MissingError

MOST_CONNECTIONS = 128
"""Beyond it requests are answered with 503; beyond twice as many, connections are cut."""
STALLED_S = 15.0
"""A viewer that reads nothing for so long is cut off."""
REQUEST_S = 10.0
"""A connection that sends no whole request for so long is cut off."""
LONGEST_HEADERS = 16 * 1024
"""Bytes of a request's line and headers."""
_START_S = 10.0


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with an end to patience: with who reads nothing, and with who never finishes asking."""

    _stalled: asyncio.TimerHandle | None = None
    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's own
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > 2 * MOST_CONNECTIONS:
            transport.abort()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        for timer in (self._stalled, self._overdue):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        self._expect()

    def pause_writing(self) -> None:
        """The viewer's buffers are full."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The viewer has read."""
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def _expect(self) -> None:
        """Start the clock when a request is awaited, stop it when one is there."""
        if not self._waiting():
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None
        elif self._overdue is None:
            self._overdue = self.loop.call_later(REQUEST_S, self._cut)

    def _cut(self) -> None:
        self._overdue = None
        if self._waiting():
            self.transport.abort()

    def _waiting(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        return cycle is None or bool(cycle.response_complete)


class WebServer:
    """Serves an ASGI application on a listening socket, beside a coroutine that runs as long.

    Args:
        make: called on the server's thread, inside its event loop: the application, what runs beside it, and what to call on
            that thread to let both finish.
        listener: the socket; the server closes it.
    """

    def __init__(
        self, make: Callable[[], tuple[ASGIApp, Callable[[], Awaitable[None]], Callable[[], None]]], listener: socket.socket
    ) -> None:
        self._make = make
        self._listener = listener
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="ufovit-page", daemon=True)
        self.failed: BaseException | None = None

    def start(self) -> None:
        """Start the thread; returns when requests are answered. Raises MissingError if that takes too long."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            if self._server is not None and self._server.started:
                return
            time.sleep(0.01)
        self.stop()
        raise MissingError("the page did not start", found=self.failed, next_command="run without --serve")

    def stop(self, patience_s: float = 5.0) -> None:
        """End the streams, then the thread; a second call does nothing."""
        if self._server is not None:
            self._server.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the thread has ended
                self._loop.call_soon_threadsafe(self._end)
        if self._thread.ident is not None:
            self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # uvicorn leaves with SystemExit; `start` tells it
            self.failed = error
        finally:
            self._listener.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app, beside, self._end = self._make()
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,  # who claims to speak for another address is not believed
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=0,
            h11_max_incomplete_event_size=LONGEST_HEADERS,
        )
        self._server = uvicorn.Server(config)
        running = asyncio.ensure_future(beside())
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            running.cancel()
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.gather(running, return_exceptions=True)
