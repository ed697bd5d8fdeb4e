"""Where the page is served: `--serve [HOST:]PORT`, the listening socket, the names it may be asked for under. Stdlib only."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Callable

from calib.errors import InputError, MissingError

LOOPBACK = "127.0.0.1"
SEND_BUFFER = 128 * 1024
"""Bytes of a connection that the kernel holds: two or three pictures, so that a slow viewer sees no old scene."""
_ALLOWED = "[HOST:]PORT with a port from 0 (any free one) to 65535, as 8080, 0.0.0.0:8080 or [::1]:8080"
_ADDRESS = re.compile(r"(?:(?P<host>\[[^\[\]]+\]|[^:\[\]\s/]+):)?(?P<port>[0-9]{1,5})")


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of `[HOST:]PORT`; without a host it is 127.0.0.1. Raises InputError."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match["port"]) > 65535:
        raise InputError("not an address for the page", where="--serve", found=text, allowed=_ALLOWED)
    host = (match["host"] or LOOPBACK).strip("[]")
    if ":" in host and _ip(host) is None:
        raise InputError("not an IPv6 address", where="--serve", found=text, allowed=_ALLOWED)
    return host, int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host: "localhost" or an address of the loopback interface."""
    address = _ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def host_check(host: str) -> Callable[[str], bool]:
    """Tells whether a request's Host header is one of this machine's.

    A page on the internet may point a name of its own at this machine and then read the camera as if it were its own (DNS
    rebinding); that name arrives in the Host header. On loopback only loopback's names count. Elsewhere a viewer may
    use any address, and the name of this machine with any domain behind it.
    """
    bound = host.lower()
    if is_loopback(host):
        return lambda header: is_loopback(_name(header))
    names = {bound, "localhost", socket.gethostname().lower().partition(".")[0]}

    def known(header: str) -> bool:
        name = _name(header)
        return _ip(name) is not None or name in names or name.partition(".")[0] in names - {"localhost"}

    return known


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises InputError or MissingError saying why there is none."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(
            "the host for the page is not known here",
            where="--serve",
            found=host,
            allowed="an address of this machine",
            next_command=f"--serve {port}, or --serve 0.0.0.0:{port} for every network",
        ) from error
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted connections inherit these
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        server.bind(address)
        server.listen(128)
        server.setblocking(False)
    except OSError as error:
        server.close()
        raise _no_socket(host, port, error) from error
    return server


def url_of(host: str, port: int) -> str:
    """What a person types into a browser; for 0.0.0.0 the address that other machines reach this one under."""
    address = _ip(host)
    shown = host
    if address is not None and address.is_unspecified:
        shown = _outward(address.version) or socket.gethostname()
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _name(header: str) -> str:
    """The host of a Host header, without port, brackets and final dot, in lower case; "" for nonsense."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", header)
    return "" if match is None else match[1].strip("[]").lower().removesuffix(".")


def _outward(version: int) -> str | None:
    """This machine's address on the way to elsewhere. Connecting a datagram socket sends nothing."""
    family, elsewhere = (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _no_socket(host: str, port: int, error: OSError) -> InputError | MissingError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return InputError(
            f"port {port} is taken by another program",
            where=where,
            allowed="a free port",
            next_command=f"--serve {other}, or --serve 0 for any free port",
        )
    if error.errno == errno.EACCES:
        return MissingError(
            f"port {port} needs a permission that this user lacks", where=where, next_command="--serve 8080, or any from 1024"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return InputError(
            "the host for the page is no address of this machine",
            where=where,
            next_command=f"--serve {port}, or --serve 0.0.0.0:{port} for every network",
        )
    return MissingError("the page cannot be served there", where=where, found=error.strerror, next_command="--serve 8080")
