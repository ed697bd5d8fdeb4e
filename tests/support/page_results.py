"""Results as the camera's loop would give them, and a page that serves them, for the tests of the page."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import numpy as np

from edge.camera.frame import Frame, Latency, Result
from edge.camera.web.dashboard import Dashboard
from edge.tasks.classification import Classification

LABELS = ("bolt", "nut", "washer")
IDENTITY = {"model": "ufovit_t", "precision": "int8", "verdict": "pass: -0.02 points", "engine": "sha256 0123456789abcdef"}
TASK = Classification(LABELS)
LAYOUT = TASK.panel_layout()
TOKEN = "correct-horse-battery"


def result(number: int, winner: int = 0, *, pixels: np.ndarray | None = None, latency: Latency | None = None) -> Result:
    """A result whose picture is a grey that tells its number, and whose top is LABELS[winner] with 90 %."""
    shares = np.full(len(LABELS), 0.05, np.float32)
    shares[winner] = 0.9
    outputs = (np.log(shares)[None],)
    if pixels is None:
        pixels = np.full((120, 160, 3), number % 256, np.uint8)
    frame = Frame(pixels, 2 * number, time.monotonic(), 1.0)
    return Result(
        frame, outputs, TASK.answer(outputs, 3), latency or Latency(1.0, 2.0, 3.0, 0.5, 20.0), number, dropped=number, fps=30.0
    )


@contextmanager
def served(token: str | None = None, **options: object) -> Iterator[tuple[Dashboard, int]]:
    """A page on a free port of loopback, and the port."""
    page = Dashboard(IDENTITY, LAYOUT, "127.0.0.1", 0, token, **options)  # type: ignore[arg-type]
    try:
        port = urlsplit(page.start()).port
        assert port is not None
        yield page, port
    finally:
        page.close()


def ask(
    port: int, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of one request."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def say(port: int, request: bytes, *, seconds: float = 5.0) -> bytes:
    """What the server answers to these very bytes until it closes, or until it is silent for so long."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=seconds)) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


@contextmanager
def stream(port: int, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """An open stream of the page."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        yield connection.getresponse()
