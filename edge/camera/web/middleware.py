"""What every request to the page passes: whose name it came under, whose page sent it, and whether it knows the token."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.camera.web.token import Access

OPEN_PATHS = ("/login", "/static/page.css", "/static/icon.svg")
"""What the form for the token needs."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # "no-referrer" would make browsers send forms with "Origin: null"
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware. Every answer, refusals too, carries HEADERS."""

    def __init__(self, app: ASGIApp, access: Access, known_host: Callable[[str], bool]) -> None:
        self._app = app
        self._access = access
        self._known_host = known_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._known_host(headers.get("host", "")):
            return refuse(421, "This page answers to the address or the name of its machine only.")
        if from_elsewhere(headers, scope["method"]):
            return refuse(403, "Another site may not use this page.")
        if not self._access.needed or scope["path"] in OPEN_PATHS or self._access.has_cookie(headers.get("cookie", "")):
            return None
        return self._without_cookie(scope, headers)

    def _without_cookie(self, scope: Scope, headers: Headers) -> Response | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            if scope["path"] == "/":
                return RedirectResponse("/login", 303)
            return refuse(401, "This page wants a token: open /login, or send Authorization: Bearer TOKEN.")
        wait_s = self._access.wait_s(address_of(scope))
        if wait_s > 0:
            return refuse(429, "Too many wrong tokens. Wait, then try again.", {"Retry-After": str(int(wait_s) + 1)})
        if not self._access.accepts(token.strip(), address_of(scope)):
            return refuse(401, "That is not the token.")
        return None


def refuse(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """A short answer in plain text; 401 also says how to be let in."""
    extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return PlainTextResponse(text + "\n", status, {**extra, **(headers or {})})


def address_of(scope: Scope) -> str:
    """The address that a request came from; forwarded ones are not believed."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def from_elsewhere(headers: Headers, method: str) -> bool:
    """Whether another site's page made the browser ask; following a link to the page is fine.

    Browsers say so in Sec-Fetch-Site where the connection cannot be tampered with (this machine, or behind TLS), and elsewhere
    in the Origin of a form.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        linked = method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return site not in ("same-origin", "none") and not linked
    origin = headers.get("origin")
    return method == "POST" and origin is not None and origin.partition("://")[2] != headers.get("host")
