"""Who may view the page: a token, a cookie for browsers that gave it, and a limit on wrong guesses. Stdlib only."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie

from calib.errors import UsageError
from edge.camera.frame import Clock

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


def equal_in_constant_time(left: str, right: str) -> bool:
    """Whether two texts are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())


class _Bucket:
    """A token bucket: `size` guesses at once, one more every `every_s`."""

    def __init__(self, size: int, every_s: float, now_s: float) -> None:
        self._left, self._size, self._every_s, self._updated_s = float(size), size, every_s, now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until a guess is left."""
        self._refill(now_s)
        return max(0.0, (1 - self._left) * self._every_s)

    def remove_one(self, now_s: float) -> None:
        """Use up a guess."""
        self._refill(now_s)
        self._left -= 1

    def _refill(self, now_s: float) -> None:
        self._left = min(float(self._size), self._left + (now_s - self._updated_s) / self._every_s)
        self._updated_s = now_s


class GuessLimiter:
    """Counts wrong tokens, per address (per /64 network of IPv6, which one person holds) and together; in bounded memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all = _Bucket(ALL_GUESSES, ALL_EVERY_S, clock())
        self._by_address: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until a token from this address is checked again; 0.0: now."""
        now_s = self._clock()
        return max(self._bucket(address).wait_s(now_s), self._all.wait_s(now_s))

    def count_wrong(self, address: str) -> None:
        """Count a wrong token from this address."""
        for bucket in (self._bucket(address), self._all):
            bucket.remove_one(self._clock())

    def _bucket(self, address: str) -> _Bucket:
        network = _network(address)
        bucket = self._by_address.setdefault(network, _Bucket(GUESSES, GUESS_EVERY_S, self._clock()))
        self._by_address.move_to_end(network)
        while len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)
        return bucket


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)


class TokenAuth:
    """Decides on one request. With `token` None everyone who reaches the page may view it.

    A browser gives the token once, in a form, and from then on a cookie. Every process generates a new cookie, and its name
    holds the port, because browsers send one host's cookies to every port. Programs send `Authorization: Bearer TOKEN`.
    """

    def __init__(self, token: str | None, port: int, clock: Clock) -> None:
        self._token = token
        self._session = secrets.token_urlsafe(32)
        self._cookie = f"ufovit_page_{port}"
        self._guesses = GuessLimiter(clock)

    @property
    def needed(self) -> bool:
        """Whether a token is required at all."""
        return self._token is not None

    @property
    def set_cookie(self) -> str:
        """The header that gives a browser its cookie, inaccessible to scripts and to other sites."""
        return f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"

    def has_cookie(self, header: str) -> bool:
        """Whether a Cookie header holds the session."""
        try:
            morsel = SimpleCookie(header).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and equal_in_constant_time(morsel.value, self._session)

    def wait_s(self, address: str) -> float:
        """Seconds until this address may send a token; 0.0: now."""
        return self._guesses.wait_s(address)

    def accepts(self, token: str, address: str) -> bool:
        """Whether this is the token; a wrong one is counted. While `wait_s` is positive no token is checked."""
        if self._token is None:
            return True
        if self.wait_s(address) > 0:
            return False
        if equal_in_constant_time(token, self._token):
            return True
        self._guesses.count_wrong(address)
        return False
