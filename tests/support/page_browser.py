"""A browser without a window, and a camera for it to look at, for the tests of the page."""

from __future__ import annotations

import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from page_results import result, served
from PIL import Image

from edge.camera.web.dashboard import Dashboard

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
DESKTOP, PHONE = {"width": 1366, "height": 900}, {"width": 390, "height": 844}
needs_browser = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")]
Tabs = Callable[..., tuple[Any, "Log"]]
"""(address, size, colour scheme) -> a tab that shows it, and its log."""


class Camera:
    """A loop that gives results twenty times a second, as long as it is not held; what it shows can be set."""

    def __init__(self, page: Dashboard) -> None:
        self.page, self.winner, self.grey, self.held, self.given = page, 0, 40, False, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(0.05):
            if not self.held:
                pixels = np.full((240, 320, 3), self.grey, np.uint8)
                self.page(result(self.given, self.winner, pixels=pixels))
                self.given += 1

    def cut_pictures(self) -> None:
        """End every connection that reads pictures, as a network does that breaks; figures go on."""
        server = self.page._server
        assert server is not None
        assert server._loop is not None
        for connection in list(server._server.server_state.connections):
            # a connection that has had no request yet has no scope
            if connection.scope is not None and connection.scope["path"] == "/picture":
                server._loop.call_soon_threadsafe(connection.transport.abort)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()


@contextmanager
def camera(token: str | None = None, **options: Any) -> Iterator[tuple[Camera, str]]:
    with served(token, **options) as (page, port):
        running = Camera(page)
        try:
            yield running, f"http://127.0.0.1:{port}/"
        finally:
            running.stop()


class Log:
    """What a browser's tab asked for, and what it complained about."""

    def __init__(self, tab: Any) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        tab.on("request", lambda request: self.asked.append(request.url))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None)


@contextmanager
def chromium_tabs() -> Iterator[Tabs]:
    """Opens tabs, each in a profile of its own, until the block ends."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])

        def opened(url: str, size: dict[str, int] = DESKTOP, scheme: str = "light") -> tuple[Any, Log]:
            tab = browser.new_context(viewport=size, color_scheme=scheme).new_page()
            tab.set_default_timeout(15_000)
            log = Log(tab)
            tab.goto(url)
            return tab, log

        try:
            yield opened
        finally:
            browser.close()


@contextmanager
def tab_profiles(tabs: Tabs) -> Iterator[Tabs]:
    """The same, and every tab is closed when the block ends."""
    contexts = []

    def opened(*args: Any, **options: Any) -> tuple[Any, Log]:
        tab, log = tabs(*args, **options)
        contexts.append(tab.context)
        return tab, log

    try:
        yield opened
    finally:
        for context in contexts:
            context.close()


def says(tab: Any, selector: str, text: str, seconds: float = 15) -> None:
    """Wait until an element shows a text."""
    playwright.expect(tab.locator(selector)).to_have_text(re.compile(text), timeout=1000 * seconds)


def grey_of(tab: Any) -> float:
    """The mean brightness of the middle of the picture, as seen on the screen."""
    box = tab.locator(".view").bounding_box()
    middle = {"x": box["x"] + box["width"] / 2 - 30, "y": box["y"] + box["height"] / 2 - 30, "width": 60, "height": 60}
    return float(np.asarray(Image.open(io.BytesIO(tab.screenshot(clip=middle))).convert("RGB")).mean())


def wait_for(true: Callable[[], bool], what: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.1)


def curve_width(tab: Any, selector: str) -> int:
    """Columns of a chart that its coloured curve crosses, as seen on the screen; grid and numbers are grey."""
    seen = np.asarray(Image.open(io.BytesIO(tab.locator(selector).screenshot())).convert("RGB")).astype(int)
    coloured = seen.max(axis=2) - seen.min(axis=2) > 40
    return int(coloured.any(axis=0).sum())


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: str, other: str) -> float:
    """Contrast ratio, WCAG 2.2."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
