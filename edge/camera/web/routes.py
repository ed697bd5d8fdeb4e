"""The page's addresses: a fixed table, so that no path of the disk is reachable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import resources
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
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
        Route("/picture", _stream(feed, "picture"), methods=["GET"]),
        Route("/figures", _stream(feed, "figures"), methods=["GET"]),
    ]
    routes += [Route(f"/static/{name}", _fixed(_file(name), media), methods=["GET"]) for name, media in FILES.items()]
    site = Starlette(routes=routes)
    site.router.redirect_slashes = False
    return Guard(site, access, known_host)


class _Stream(StreamingResponse):
    """A response that lasts as long as its viewer does, and is counted as one."""

    def __init__(self, feed: Feed, name: str) -> None:
        content = feed.pictures() if name == "picture" else feed.figures()
        super().__init__(content, headers={"Content-Type": _STREAMS[name], "X-Accel-Buffering": "no"})
        self._viewer = feed.watching(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the viewer leaves."""
        with self._viewer:
            await super().__call__(scope, receive, send)


def _stream(feed: Feed, name: str) -> Callable[[Request], Response]:
    async def answer(request: Request) -> Response:
        if request.method != "GET":  # starlette adds HEAD to GET; a stream has no end to measure
            return Response("Method Not Allowed", 405, {"Allow": "GET"})
        return _Stream(feed, name)

    return answer  # type: ignore[return-value]  # starlette takes both kinds of functions


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
