"""The page over HTTP: to whom it is shown, and what is refused. Oracle: the standard library's client and raw sockets."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from urllib.parse import quote, urlsplit

import pytest
from page_results import IDENTITY, LAYOUT, TOKEN, ask, result, say, served, stream

from calib.errors import InputError, MissingError
from edge.camera.web import server
from edge.camera.web.dashboard import Dashboard
from edge.camera.web.token import GUESSES

PATHS = ("/", "/picture", "/figures", "/static/page.js", "/static/charts.js", "/static/stream.js")
FORM = {"Content_Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def open_page() -> Iterator[int]:
    """The port of a page without a token, with a result on it."""
    with served() as (page, port):
        page(result(7, winner=2))
        yield port


@pytest.fixture
def guarded_page() -> Iterator[int]:
    """The port of a page with a token."""
    with served(TOKEN) as (page, port):
        page(result(7))
        yield port


def refused(port: int, path: str, **headers: str) -> int:
    """The status without reading on: a stream that is served by mistake would never end."""
    with stream(port, path, **headers) as answer:
        return answer.status


def test_loopback_is_the_default_and_wants_no_token() -> None:
    page = Dashboard(IDENTITY, LAYOUT)
    assert page._host == "127.0.0.1"
    assert page.token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "jetson.local"])
def test_another_host_gets_a_token_without_being_asked(host: str) -> None:
    tokens = {Dashboard(IDENTITY, LAYOUT, host).token for _ in range(2)}
    assert len(tokens) == 2
    assert all(token and len(token) >= 22 for token in tokens)
    assert Dashboard(IDENTITY, LAYOUT, host, token=TOKEN).token == TOKEN
    with pytest.raises(InputError, match="unsuitable token"):
        Dashboard(IDENTITY, LAYOUT, host, token="")


@pytest.mark.parametrize(("host", "reached"), [("0.0.0.0", "127.0.0.1"), ("::1", "::1")])
def test_a_page_for_every_network_asks_for_the_token_that_it_made(host: str, reached: str) -> None:
    page = Dashboard(IDENTITY, LAYOUT, host, 0)
    try:
        url = urlsplit(page.start())
    except (InputError, MissingError):
        pytest.skip(f"{host} cannot be served on this machine")
    try:
        for token, status in ((None, 401 if page.token else 200), (page.token or "anything", 200)):
            with closing(http.client.HTTPConnection(reached, url.port, timeout=10)) as connection:
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                connection.request("GET", "/static/page.js", headers=headers)
                assert connection.getresponse().status == status
    finally:
        page.close()
    assert (page.token is None) is (host == "::1")
    assert url.hostname not in ("0.0.0.0", None)


@pytest.mark.parametrize("path", ["/", "/login", "/static/page.css", "/nothing", "/static/page.js"])
def test_every_answer_carries_the_security_headers(guarded_page: int, path: str) -> None:
    _, headers, _ = ask(guarded_page, path)
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["img-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_shown(guarded_page: int, path: str) -> None:
    assert refused(guarded_page, path) == (303 if path == "/" else 401)
    assert refused(guarded_page, path, Authorization="Bearer wrong-token") == 401
    assert refused(guarded_page, path, Authorization=f"Basic {TOKEN}") == (303 if path == "/" else 401)
    assert refused(guarded_page, path, Cookie=f"token={TOKEN}") == (303 if path == "/" else 401)
    assert refused(guarded_page, f"{path}?token={TOKEN}") == (303 if path == "/" else 401), "addresses end in logs"
    assert refused(guarded_page, path, Authorization=f"Bearer {TOKEN}") == 200


def test_the_form_takes_the_token_and_gives_a_cookie(guarded_page: int) -> None:
    assert ask(guarded_page, "/")[1]["location"] == "/login"
    form = ask(guarded_page, "/login")
    assert (form[0], b'type="password"' in form[2]) == (200, True)
    for path in ("/static/page.css", "/static/icon.svg"):
        assert ask(guarded_page, path)[0] == 200
    wrong = ask(guarded_page, "/login", "POST", "token=%3Cscript%3E", **FORM)
    assert wrong[0] == 401
    assert b"That is not the token" in wrong[2]
    assert b"script>" not in wrong[2], "what was typed is not repeated"
    assert ask(guarded_page, "/login", "POST", "", **FORM)[0] == 400
    status, headers, _ = ask(guarded_page, "/login", "POST", f"token={quote(TOKEN)}", **FORM)
    assert (status, headers["location"]) == (303, "/")
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert TOKEN not in headers["set-cookie"]
    for path in PATHS:
        assert refused(guarded_page, path, Cookie=cookie) == 200
    assert refused(guarded_page, "/", Cookie=cookie[:-1]) == 303
    assert ask(guarded_page, "/login", Cookie=cookie)[0] == 303


def test_guessing_is_stopped(guarded_page: int) -> None:
    for _ in range(GUESSES):
        assert ask(guarded_page, "/login", "POST", "token=wrong-guess", **FORM)[0] == 401
    status, headers, body = ask(guarded_page, "/login", "POST", f"token={TOKEN}", **FORM)
    assert (status, b"Try again in" in body) == (429, True), "not even the right one is looked at"
    assert 1 <= int(headers["retry-after"]) <= 10
    assert refused(guarded_page, "/figures", Authorization=f"Bearer {TOKEN}") == 429


def test_a_claim_to_come_from_elsewhere_brings_no_new_guesses(guarded_page: int) -> None:
    answers = [
        refused(guarded_page, "/figures", Authorization="Bearer wrong-guess", X_Forwarded_For=f"10.0.0.{n}") for n in range(8)
    ]
    assert answers == [401] * GUESSES + [429] * (8 - GUESSES)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "192.168.1.4", "", "localhost.evil.example"])
def test_another_name_is_refused(open_page: int, host: str) -> None:
    assert refused(open_page, "/figures", Host=host) == 421


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1"])
def test_names_of_loopback_are_served_through_a_tunnel_too(open_page: int, host: str) -> None:
    assert ask(open_page, "/", Host=host)[0] == 200


def test_requests_of_other_sites_are_refused_and_links_are_not(open_page: int) -> None:
    assert refused(open_page, "/picture", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image") == 403
    assert refused(open_page, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe") == 403
    assert refused(open_page, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document") == 200
    assert refused(open_page, "/picture", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image") == 200
    assert ask(open_page, "/login", "POST", "token=x", **FORM, Origin="http://evil.example")[0] == 403
    assert ask(open_page, "/login", "POST", "token=x", **FORM, Origin="null")[0] == 403
    proxied = {"Sec_Fetch_Site": "same-origin", "Origin": "https://camera.example"}
    assert ask(open_page, "/login", "POST", "token=x", **FORM, **proxied)[0] != 403, "TLS is ended by somebody else"
    assert ask(open_page, "/login", "POST", "token=x", **FORM, **{**proxied, "Sec_Fetch_Site": "cross-site"})[0] == 403
    assert ask(open_page, "/login", "POST", "token=x", **FORM, Origin=f"http://127.0.0.1:{open_page}")[0] != 403


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../etc/passwd",
        "/static/..%2f..%2f..%2fetc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..\\..\\etc\\passwd",
        "/static/....//....//etc/passwd",
        "/static/page.css%00.html",
        "/static/index.html",
        "/static/",
        "/static",
        "/static/page.css/",
        "/static/../dashboard.py",
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/etc/passwd",
        "/index.html",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_of_the_disk_is_reachable(open_page: int, path: str) -> None:
    answer = say(open_page, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:60]
    assert b"root:" not in answer
    assert b"page.css" not in answer.partition(b"\r\n\r\n")[2], "no listing"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "HEAD", "BREW"])
@pytest.mark.parametrize("path", ["/", "/picture", "/figures", "/static/page.css"])
def test_methods_that_nobody_needs_are_refused(open_page: int, method: str, path: str) -> None:
    answer = say(open_page, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    expected = b"HTTP/1.1 200 " if method == "HEAD" and path in ("/", "/static/page.css") else b"HTTP/1.1 405 "
    assert answer.startswith(expected), answer[:60]


@pytest.mark.parametrize("line", [b"X: " + b"a" * 200_000, b"X: a\r\n" * 30_000])
def test_headers_without_end_are_cut_off(open_page: int, line: bytes) -> None:
    started = time.monotonic()
    with closing(socket.create_connection(("127.0.0.1", open_page), timeout=30)) as connection:
        answer = b""
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + line)
            while chunk := connection.recv(65536):
                answer += chunk
    assert time.monotonic() - started < server.REQUEST_S / 2, "at once, not when patience ends"
    assert answer.startswith(b"HTTP/1.1 4") or not answer, "what is sent on after the answer may take it away"
    assert ask(open_page, "/")[0] == 200


def test_nonsense_is_refused(open_page: int) -> None:
    assert say(open_page, b"\x16\x03\x01\x00\xa5 this is TLS\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert say(open_page, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 "), "no Host at all"
    assert say(open_page, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 "), "nor in HTTP/1.0"
    assert ask(open_page, "/")[0] == 200


def test_a_form_without_end_is_refused(guarded_page: int) -> None:
    head = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
    assert say(guarded_page, head + b"token=" + b"a" * 5000).startswith(b"HTTP/1.1 413 ")


def test_a_form_that_never_arrives_is_given_up(guarded_page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.camera.web.routes.FORM_S", 0.3)
    started = time.monotonic()
    answer = say(guarded_page, b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\ntok")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("before", [b"", b"GET /login HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("half", [b"", b"GET / HT"])
def test_who_never_finishes_asking_is_cut_off(before: bytes, half: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.3)
    with served() as (_, port), closing(socket.create_connection(("127.0.0.1", port), timeout=8)) as connection:
        if before:
            connection.sendall(before)
            connection.recv(65536)
        started = time.monotonic()
        connection.sendall(half)
        with suppress(ConnectionResetError):
            assert connection.recv(65536) == b""
        assert time.monotonic() - started < (3 if half or not before else 7), "an idle connection is kept for five seconds"
