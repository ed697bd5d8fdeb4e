"""Viewers that never read: no memory, no time of the thread that infers, and in the end no connection.

Oracle: the bytes that would have been queued, and the operating system's own count of the process's memory.
"""

from __future__ import annotations

import gc
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np
import pytest
from page_results import ask, result, served, stream

from edge.camera.web import broadcast, server
from edge.camera.web.dashboard import Dashboard

pytestmark = pytest.mark.slow

NOISE = np.random.default_rng(0).integers(0, 256, (4, 480, 640, 3), dtype=np.uint8)
"""Pictures that JPEG cannot make small: about 250 KB each."""
PROC = Path("/proc/self/status")


def resident_bytes() -> int:
    gc.collect()
    return 1024 * int(next(line.split()[1] for line in PROC.read_text().splitlines() if line.startswith("VmRSS")))


def deaf_viewer(port: int, path: str) -> socket.socket:
    """Somebody who asks for a stream and never reads it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def flow(page: Dashboard, seconds: float, first: int = 0) -> list[float]:
    """Give results for a while; how long each took to give away, seconds."""
    took, number, end = [], first, time.monotonic() + seconds
    while time.monotonic() < end:
        given = result(number, pixels=NOISE[number % len(NOISE)])
        started = time.perf_counter()
        page(given)
        took.append(time.perf_counter() - started)
        number += 1
        time.sleep(0.01)
    return took


@pytest.fixture
def fast_moments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many moments as results, so that a queue would grow at once."""
    monkeypatch.setattr(broadcast, "RATE", 50.0)
    monkeypatch.setattr(broadcast, "SENDS_PER_S", 1e9)
    return


@pytest.mark.skipif(not PROC.exists(), reason="the memory of a process is read from Linux's /proc")
@pytest.mark.usefixtures("fast_moments")
def test_viewers_that_never_read_cost_no_memory() -> None:
    with served() as (page, port), ExitStack() as deaf:
        for path in ("/picture", "/figures"):
            for _ in range(20):
                deaf.enter_context(closing(deaf_viewer(port, path)))
        flow(page, 1.0)
        before, encoded = resident_bytes(), page.broadcast.encoded
        flow(page, 3.0, first=1000)
        grown, made = resident_bytes() - before, page.broadcast.encoded - encoded
        assert page.broadcast.viewers == 20
    queued = made * 20 * 200_000
    assert queued > 200e6, "the control: a queue per viewer would have held so much"
    assert grown < 30e6


@pytest.mark.usefixtures("fast_moments")
def test_a_viewer_that_never_reads_is_cut_off_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALLED_S", 0.5)
    with served() as (page, port), closing(deaf_viewer(port, "/figures")), stream(port, "/figures") as slow:
        with closing(deaf_viewer(port, "/picture")), closing(deaf_viewer(port, "/picture")):
            flow(page, 0.3)
            assert page.broadcast._viewers["picture"] == 2
            end = time.monotonic() + 15
            while page.broadcast._viewers["picture"] and time.monotonic() < end:
                flow(page, 0.1)
                slow.readline()
            assert page.broadcast._viewers["picture"] == 0
        assert slow.readline(), "who reads, however slowly, stays"


@pytest.mark.usefixtures("fast_moments")
def test_the_thread_that_infers_waits_for_nobody() -> None:
    with served() as (page, port), ExitStack() as deaf:
        for _ in range(10):
            deaf.enter_context(closing(deaf_viewer(port, "/picture")))
        took = flow(page, 2.0)
    assert statistics.median(took) < 1e-4, "a reference is stored, however many look"


def test_too_many_viewers_are_turned_away_and_the_first_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 8)
    with served() as (page, port), ExitStack() as opened:
        page(result(0))
        first = opened.enter_context(stream(port, "/figures"))
        for _ in range(7):
            opened.enter_context(closing(deaf_viewer(port, "/figures")))
            time.sleep(0.1)
        assert ask(port, "/")[0] == 503
        assert first.readline()


def test_connections_that_ask_nothing_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    with served() as (page, port):
        page(result(0))
        with ExitStack() as idle:
            for _ in range(2 * server.MAX_CONNECTIONS):
                opened = idle.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=0.2)))
                with pytest.raises(TimeoutError):
                    opened.recv(1)  # is kept
            started = time.monotonic()
            beyond = idle.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=5)))
            with suppress(ConnectionResetError):
                assert beyond.recv(1) == b""
            assert time.monotonic() - started < server.REQUEST_S / 2, "at once, not when patience ends"
        time.sleep(0.5)  # until the server has seen them close
        assert ask(port, "/")[0] == 200, "their places are free again"


@pytest.mark.usefixtures("fast_moments")
def test_the_end_waits_for_no_viewer() -> None:
    with served() as (page, port), ExitStack() as deaf:
        for _ in range(10):
            deaf.enter_context(closing(deaf_viewer(port, "/picture")))
        flow(page, 0.5)
        started = time.monotonic()
        page.close()
        assert time.monotonic() - started < 1.5, "a second, and what a busy machine adds"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=2)


def test_a_viewer_that_goes_is_forgotten() -> None:
    with served() as (page, port):
        for _ in range(5):
            with stream(port, "/figures") as figures:
                figures.readline()
        end = time.monotonic() + 5
        while page.broadcast.viewers and time.monotonic() < end:
            time.sleep(0.02)
        assert page.broadcast.viewers == 0
