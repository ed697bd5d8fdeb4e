"""Who may view the page: a token, a cookie for browsers that gave it, and a limit on wrong guesses. Stdlib only."""

import hmac
import ipaddress
import math
import secrets
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie

from calib.errors import UsageError
from edge.camera.frame import Clock
from edge.camera.web.bind_address import parse_ip

MIN_TOKEN = 8
GUESSES = 5
"""Wrong tokens that one address may send at once; one more is allowed every GUESS_EVERY_S."""
GUESS_EVERY_S = 10.0
ALL_GUESSES = 40
"""Likewise for all addresses together: many addresses gain little."""
ALL_EVERY_S = 2.0
MAX_ADDRESSES = 256
"""Addresses remembered; the one that was quiet for longest is forgotten first."""


def make_token() -> str:
    """128 bits from the operating system, as 22 characters that a person can copy."""
    return secrets.token_urlsafe(16)


def check_token(token: str) -> str:
    """Return `token`. Raises UsageError for one that is too short or that a header cannot carry."""
    if len(token) < MIN_TOKEN or not all("!" <= character <= "~" for character in token):
        raise UsageError(
            "unsuitable token for the page",
            found=f"{len(token)} characters" if len(token) < MIN_TOKEN else "a space, or a character beyond ASCII",
            allowed=f"at least {MIN_TOKEN} printable ASCII characters without spaces",
            next_command="omit the token: one is made and printed",
        )
    return token


class TokenAuth:
    """Decides on one request. With `token` None everyone who reaches the page may view it.

    A browser gives the token once, in a form, and from then on a cookie. Every process generates a new cookie, and its name
    holds the port, because browsers send one host's cookies to every port. Programs send `Authorization: Bearer TOKEN`.

    Wrong tokens are limited per address (per /64 network of IPv6, which one person holds) and together, in bounded memory. A
    token bucket of n guesses, refilled by one every T seconds, is kept as the time f at which it is full again: a guess sets
    f = max(f, now) + T, and one is left once now >= f - (n - 1) T.
    """

    def __init__(self, token: str | None, port: int, clock: Clock) -> None:
        self.needed = token is not None
        self._token, self._clock = token or "", clock
        self._session = secrets.token_urlsafe(32)
        self._cookie = f"ufovit_page_{port}"
        self.set_cookie = f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
        self._all_full_at = -math.inf
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def has_cookie(self, header: str) -> bool:
        """Whether a Cookie header holds the session."""
        try:
            morsel = SimpleCookie(header).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._session.encode())

    def wait_s(self, address: str) -> float:
        """Seconds until this address may send a token; 0.0: now."""
        own_s = self._remembered(_network(address)) - (GUESSES - 1) * GUESS_EVERY_S
        all_s = self._all_full_at - (ALL_GUESSES - 1) * ALL_EVERY_S
        return max(0.0, max(own_s, all_s) - self._clock())

    def accepts(self, token: str, address: str) -> bool:
        """Whether this is the token; a wrong one is counted. While `wait_s` is positive no token is checked."""
        if not self.needed:
            return True
        if self.wait_s(address) > 0:
            return False
        if hmac.compare_digest(token.encode(), self._token.encode()):
            return True
        network, now_s = _network(address), self._clock()
        self._full_at[network] = max(self._remembered(network), now_s) + GUESS_EVERY_S
        self._all_full_at = max(self._all_full_at, now_s) + ALL_EVERY_S
        return False

    def _remembered(self, network: str) -> float:
        full_at = self._full_at.setdefault(network, -math.inf)
        self._full_at.move_to_end(network)
        while len(self._full_at) > MAX_ADDRESSES:
            self._full_at.popitem(last=False)
        return full_at


def _network(address: str) -> str:
    parsed = parse_ip(address)
    if parsed is None:
        return address[:64]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
