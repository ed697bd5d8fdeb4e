"""`--serve [HOST:]PORT`, the socket, the names that count as this machine. Oracle: the operating system and tables by hand."""

from __future__ import annotations

import socket
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from calib.errors import InputError, MissingError
from edge.camera.web import bind_address
from edge.camera.web.bind_address import host_check, is_loopback, listen, parse_address, url_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8080", ("127.0.0.1", 8080)),
        (" 8080 ", ("127.0.0.1", 8080)),
        ("0", ("127.0.0.1", 0)),
        ("65535", ("127.0.0.1", 65535)),
        ("localhost:80", ("localhost", 80)),
        ("0.0.0.0:8080", ("0.0.0.0", 8080)),
        ("jetson.local:8080", ("jetson.local", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("[::]:8080", ("::", 8080)),
    ],
)
def test_an_address_is_read(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":8080",
        "host:",
        "65536",
        "99999",
        "-1",
        "8080x",
        "::1:8080",
        "[::1]",
        "[jetson:x]:80",
        "a b:80",
        "http://a:80",
    ],
)
def test_what_is_no_address_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(InputError, match=r"(?s)--serve.*allowed: \[HOST:\]PORT"):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "jetson", "localhost.example", "127.0.0.1.example", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("header", ["localhost", "localhost:9000", "127.0.0.1:80", "[::1]:8080", "LocalHost:1"])
def test_names_of_loopback(header: str) -> None:
    assert host_check("127.0.0.1")(header)


@pytest.mark.parametrize(
    "header",
    ["", "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "192.168.1.4", "localhost@evil", "a/b", "[::1"],
)
def test_other_names_on_loopback(header: str) -> None:
    assert not host_check("127.0.0.1")(header)


def test_names_of_a_machine_in_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Jetson")
    known = host_check("0.0.0.0")
    for header in ("192.168.1.4:8080", "[fe80::1]:8080", "jetson", "jetson.local:8080", "JETSON.factory.lan", "localhost"):
        assert known(header), header
    for header in ("", "evil.example", "notjetson", "localhost.evil.example", "evil.jetson"):
        assert not known(header), header


def test_a_port_that_is_taken_is_named_with_the_next_one() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"(?s)port {port} is in use.*next: --serve {port + 1}"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "kind", "words"),
    [
        ("no-such-host.invalid", InputError, "unknown host"),
        ("a..b", InputError, "unknown host"),
        ("192.0.2.1", InputError, "not an address of this machine"),
    ],
)
def test_a_host_that_cannot_be_served_is_refused(host: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"(?s){words}.*next: --serve 8080"):
        listen(host, 8080)


def test_a_port_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_socket: object, _address: object) -> None:
        raise PermissionError(13, "Permission denied")

    class Refusing(socket.socket):
        pass

    monkeypatch.setattr(Refusing, "bind", bind, raising=False)
    monkeypatch.setattr(bind_address.socket, "socket", Refusing)
    with pytest.raises(MissingError, match=r"(?s)no permission to use port 80.*next: --serve 8080"):
        listen("127.0.0.1", 80)


def test_the_listening_socket_is_the_one_asked_for() -> None:
    with closing(listen("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)
        with closing(socket.create_connection((host, port), timeout=5)):
            pass


def test_the_url_can_be_typed_into_a_browser() -> None:
    assert url_of("127.0.0.1", 8080) == "http://127.0.0.1:8080/"
    assert url_of("::1", 8080) == "http://[::1]:8080/"
    for anywhere in ("0.0.0.0", "::"):
        shown = urlsplit(url_of(anywhere, 8080))
        assert shown.port == 8080
        assert shown.hostname not in (anywhere, None, "")
