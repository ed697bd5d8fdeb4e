"""Checks on every request to the page: its Host header, which site's page sent it, and whether it has the token."""

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.camera.web.token import TokenAuth

OPEN_PATHS = ("/login", "/static/page.css", "/static/icon.svg")
"""Served without the token: what the login form needs."""
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


class SecurityMiddleware:
    """ASGI middleware. Every response, refusals included, carries HEADERS.

    starlette's TrustedHostMiddleware cannot allow "any IP address" and `name.*`, as `host_check` does.
    """

    def __init__(self, app: ASGIApp, auth: TokenAuth, known_host: Callable[[str], bool]) -> None:
        self._app = app
        self._auth = auth
        self._known_host = known_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http":
            await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, auth = Headers(scope=scope), self._auth
        if not self._known_host(headers.get("host", "")):
            return refusal(421, "Open this page by the address or the name of its machine.")
        if is_cross_site(headers, scope["method"]):
            return refusal(403, "Other sites may not use this page.")
        if not auth.needed or scope["path"] in OPEN_PATHS or auth.has_cookie(headers.get("cookie", "")):
            return None
        return self._bearer_refusal(scope, headers.get("authorization", ""))

    def _bearer_refusal(self, scope: Scope, authorization: str) -> Response | None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            if scope["path"] == "/":
                return RedirectResponse("/login", 303)
            return refusal(401, "This page requires a token: open /login, or send Authorization: Bearer TOKEN.")
        address = client_address(scope)
        wait_s = self._auth.wait_s(address)
        if wait_s > 0:
            return refusal(429, "Too many wrong tokens. Wait, then try again.", {"Retry-After": str(int(wait_s) + 1)})
        return None if self._auth.accepts(token.strip(), address) else refusal(401, "That is not the token.")


def refusal(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """A short response in plain text; 401 also names the scheme of authentication."""
    return PlainTextResponse(text + "\n", status, {"WWW-Authenticate": "Bearer"} if status == 401 else headers)


def client_address(scope: Scope) -> str:
    """The peer address of a request; forwarding headers are ignored."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def is_cross_site(headers: Headers, method: str) -> bool:
    """Whether another site's page caused the request; following a link to the page is allowed.

    Browsers send Sec-Fetch-Site where the connection is trustworthy (this machine, or over TLS), and otherwise the Origin of a
    form.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        linked = method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return site not in ("same-origin", "none") and not linked
    origin = headers.get("origin")
    return method == "POST" and origin is not None and origin.partition("://")[2] != headers.get("host")
