"""Where the page is served: `--serve [HOST:]PORT`, the listening socket, the accepted Host headers. Stdlib only."""

import errno
import ipaddress
import re
import socket
from collections.abc import Callable

from calib.errors import MissingError, UsageError

LOOPBACK = "127.0.0.1"
SEND_BUFFER = 128 * 1024
"""Bytes that the kernel buffers per connection: two or three pictures, so that a slow viewer does not see an old scene."""
_ALLOWED = "[HOST:]PORT with a port from 0 (any free one) to 65535, such as 8080, 0.0.0.0:8080 or [::1]:8080"
_ADDRESS = re.compile(r"(?:(?P<host>\[[^\[\]]+\]|[^:\[\]\s/]+):)?(?P<port>[0-9]{1,5})")


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of `[HOST:]PORT`; without a host it is 127.0.0.1. Raises UsageError."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match["port"]) > 65535:
        raise UsageError("invalid address for the page", where="--serve", found=text, allowed=_ALLOWED)
    host = (match["host"] or LOOPBACK).strip("[]")
    if ":" in host and parse_ip(host) is None:
        raise UsageError("invalid IPv6 address", where="--serve", found=text, allowed=_ALLOWED)
    return host, int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether a host is reachable from this machine only: "localhost" or an address of the loopback interface."""
    address = parse_ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def host_check(host: str) -> Callable[[str], bool]:
    """A function that tells whether a request's Host header names this machine.

    A site on the internet may resolve a name of its own to this machine and then read the camera as same-origin (DNS
    rebinding); that name arrives in the Host header. On loopback only names of loopback are accepted. Elsewhere a viewer may
    use any IP address, and the name of this machine followed by any domain.
    """
    bound = host.lower()
    if is_loopback(host):
        return lambda header: is_loopback(_name(header))
    names = {bound, "localhost", socket.gethostname().lower().partition(".")[0]}

    def known(header: str) -> bool:
        name = _name(header)
        return parse_ip(name) is not None or name in names or name.partition(".")[0] in names - {"localhost"}

    return known


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises UsageError or MissingError with the reason if there can be none."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        allowed = "an address of this machine"
        raise UsageError(
            "unknown host for the page", where="--serve", found=host, allowed=allowed, next_command=_other_hosts(port)
        ) from error
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted connections inherit both
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        server.bind(address)
        server.listen(128)
        server.setblocking(False)
    except OSError as error:
        server.close()
        raise _listen_error(host, port, error) from error
    return server


def url_of(host: str, port: int) -> str:
    """The URL for a browser; for 0.0.0.0 with the address under which other machines reach this one."""
    address = parse_ip(host)
    shown = host
    if address is not None and address.is_unspecified:
        shown = _outbound_address(address.version) or socket.gethostname()
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def parse_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address without its zone; None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _name(header: str) -> str:
    """The host of a Host header, without port, brackets and final dot, in lower case; "" if malformed."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", header)
    return "" if match is None else match[1].strip("[]").lower().removesuffix(".")


def _outbound_address(version: int) -> str | None:
    """This machine's address on the route to other networks. Connecting a datagram socket sends nothing."""
    family, remote = (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _listen_error(host: str, port: int, error: OSError) -> UsageError | MissingError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        command = f"--serve {port + 1 if port < 65535 else port - 1}, or --serve 0 for any free port"
        what = f"port {port} is in use by another program"
        return UsageError(what, where=where, allowed="a free port", next_command=command)
    if error.errno == errno.EACCES:
        return MissingError(f"no permission to use port {port}", where=where, next_command="--serve 8080, or any from 1024")
    if error.errno == errno.EADDRNOTAVAIL:
        what = "the host for the page is not an address of this machine"
        return UsageError(what, where=where, next_command=_other_hosts(port))
    what = "the page cannot be served at this address"
    return MissingError(what, where=where, found=error.strerror, next_command="--serve 8080")


def _other_hosts(port: int) -> str:
    return f"--serve {port}, or --serve 0.0.0.0:{port} for every network"
