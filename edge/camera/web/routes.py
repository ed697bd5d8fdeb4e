"""The page's addresses: a fixed table, so that no path of the disk is reachable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from importlib import resources
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.camera.web.broadcast import Feed
from edge.camera.web.middleware import Guard, address_of
from edge.camera.web.token import Access

FILES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "stream.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HTML = "text/html; charset=utf-8"
LONGEST_FORM = 4096
"""Bytes of the form with the token."""
FORM_S = 5.0
"""Seconds that a form has to arrive."""
_MESSAGE = "<!-- message -->"
_STREAMS = {"picture": "multipart/x-mixed-replace; boundary=frame", "figures": "text/event-stream"}


def make_site(feed: Feed, access: Access, known_host: Callable[[str], bool]) -> ASGIApp:
    """The ASGI application: the page, its files, its two streams, the form for the token; guarded."""
    login = _Login(access)
    routes = [
        Route("/", _fixed(_file("index.html"), HTML), methods=["GET"]),
        Route("/login", login.form, methods=["GET"]),
        Route("/login", login.token, methods=["POST"]),
        Route("/picture", _Stream(feed, "picture")),
        Route("/figures", _Stream(feed, "figures")),
    ]
    routes += [Route(f"/static/{name}", _fixed(_file(name), media), methods=["GET"]) for name, media in FILES.items()]
    site = Starlette(routes=routes)
    site.router.redirect_slashes = False
    return Guard(site, access, known_host)


class _Stream:
    """A response that lasts as long as its viewer does."""

    def __init__(self, feed: Feed, name: str) -> None:
        self._feed = feed
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await Response("Method Not Allowed", 405, {"Allow": "GET"})(scope, receive, send)
            return
        head = [(b"content-type", _STREAMS[self._name].encode()), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        with self._feed.watching(self._name):
            chunks = self._feed.pictures() if self._name == "picture" else self._feed.figures()
            tasks = [asyncio.create_task(_pump(chunks, send)), asyncio.create_task(_gone(receive))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(chunks: AsyncIterator[bytes], send: Send) -> None:
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Login:
    """The form for the token."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._page = _file("login.html").decode()

    async def form(self, request: Request) -> Response:
        """The empty form; whoever needs none is sent on."""
        if not self._access.needed or self._access.has_cookie(request.headers.get("cookie", "")):
            return RedirectResponse("/", 303)
        return self._say("", 200)

    async def token(self, request: Request) -> Response:
        """A filled-in form: the cookie and the page, or the form again with what is wrong."""
        wait_s = self._access.wait_s(address_of(request.scope))
        if wait_s > 0:
            wait = f"{int(wait_s) + 1}"
            return self._say(f"Too many wrong tokens. Try again in {wait} seconds.", 429, {"Retry-After": wait})
        try:
            body = await asyncio.wait_for(_body(request), FORM_S)
        except (asyncio.TimeoutError, ClientDisconnect):
            return self._say("The form did not arrive.", 408, {"Connection": "close"})
        if body is None:
            return self._say("The form is too long.", 413, {"Connection": "close"})
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not given:
            return self._say("Type the token that the camera printed when it started.", 400)
        if not self._access.accepts(given, address_of(request.scope)):
            return self._say("That is not the token. The camera printed it when it started.", 401)
        return RedirectResponse("/", 303, {"Set-Cookie": self._access.set_cookie})

    def _say(self, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
        """The form with one of the sentences above: nothing that a request holds is written into the page."""
        shown = f'<p id="message" class="refused" role="alert">{message}</p>' if message else ""
        return Response(self._page.replace(_MESSAGE, shown), status, headers, HTML)


async def _body(request: Request) -> bytes | None:
    """The body of a request, None if it is longer than LONGEST_FORM."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM:
            return None
    return body


def _fixed(data: bytes, media_type: str) -> Callable[[Request], Response]:
    async def answer(_request: Request) -> Response:
        return Response(data, media_type=media_type)

    return answer  # type: ignore[return-value]  # starlette takes both kinds of functions


def _file(name: str) -> bytes:
    return (resources.files("edge.camera.web") / "static" / name).read_bytes()
