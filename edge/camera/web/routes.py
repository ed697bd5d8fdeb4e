"""The page's routes: a fixed table, so that no path of the disk is reachable."""

import asyncio
from collections.abc import Callable
from functools import partial
from importlib import resources
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.camera.web.broadcast import Broadcast
from edge.camera.web.middleware import SecurityMiddleware, client_address
from edge.camera.web.token import TokenAuth

FILES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "stream.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HTML = "text/html; charset=utf-8"
MAX_FORM_BYTES = 4096
FORM_S = 5.0
"""Seconds that a form has to arrive."""
_MESSAGE = "<!-- message -->"
_STREAMS = {"picture": "multipart/x-mixed-replace; boundary=frame", "figures": "text/event-stream"}


def create_app(broadcast: Broadcast, auth: TokenAuth, known_host: Callable[[str], bool]) -> ASGIApp:
    """The ASGI application: the page, its files, its two streams and the login form, after the security checks."""
    login = _Login(auth)
    routes = [
        Route("/", partial(_send_file, _read_file("index.html"), HTML)),
        Route("/login", login.show),
        Route("/login", login.submit, methods=["POST"]),
        *(Route(f"/{name}", partial(_send_stream, broadcast, name)) for name in _STREAMS),
        *(Route(f"/static/{name}", partial(_send_file, _read_file(name), media)) for name, media in FILES.items()),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return SecurityMiddleware(app, auth, known_host)


class _ViewerStream(StreamingResponse):
    """A response that lasts until its viewer leaves, and is counted until then."""

    def __init__(self, broadcast: Broadcast, name: str) -> None:
        content = broadcast.pictures() if name == "picture" else broadcast.figures()
        super().__init__(content, headers={"Content-Type": _STREAMS[name], "X-Accel-Buffering": "no"})
        self._viewer = broadcast.viewer(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        with self._viewer:
            await super().__call__(scope, receive, send)


class _Login:
    """The form for the token."""

    def __init__(self, auth: TokenAuth) -> None:
        self._auth = auth
        self._page = _read_file("login.html").decode()

    async def show(self, request: Request) -> Response:
        """The empty form; a viewer that needs no token is redirected to the page."""
        if not self._auth.needed or self._auth.has_cookie(request.headers.get("cookie", "")):
            return RedirectResponse("/", 303)
        return self._form("", 200)

    async def submit(self, request: Request) -> Response:
        """A completed form: the cookie and the page, or the form again with an error message."""
        address = client_address(request.scope)
        wait_s = self._auth.wait_s(address)
        if wait_s > 0:
            wait = f"{int(wait_s) + 1}"
            return self._form(f"Too many wrong tokens. Try again in {wait} seconds.", 429, {"Retry-After": wait})
        try:
            body = await asyncio.wait_for(_read_body(request), FORM_S)
        except (asyncio.TimeoutError, ClientDisconnect):
            return self._form("The form did not arrive.", 408, {"Connection": "close"})
        if body is None:
            return self._form("The form is too long.", 413, {"Connection": "close"})
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not token:
            return self._form("Enter the token that the camera printed when it started.", 400)
        if not self._auth.accepts(token, address):
            return self._form("That is not the token. The camera printed it when it started.", 401)
        return RedirectResponse("/", 303, {"Set-Cookie": self._auth.set_cookie})

    def _form(self, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
        """The form with one of the messages above: nothing from a request is written into the page."""
        shown = f'<p id="message" class="refused" role="alert">{message}</p>' if message else ""
        return Response(self._page.replace(_MESSAGE, shown), status, headers, HTML)


async def _read_body(request: Request) -> bytes | None:
    """The body of a request, None if it is longer than MAX_FORM_BYTES."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return None
    return body


async def _send_stream(broadcast: Broadcast, name: str, request: Request) -> Response:
    if request.method != "GET":  # starlette adds HEAD to GET; a stream has no end to describe
        return Response("Method Not Allowed", 405, {"Allow": "GET"})
    return _ViewerStream(broadcast, name)


async def _send_file(data: bytes, media_type: str, _request: Request) -> Response:
    return Response(data, media_type=media_type)


def _read_file(name: str) -> bytes:
    return (resources.files("edge.camera.web") / "static" / name).read_bytes()
