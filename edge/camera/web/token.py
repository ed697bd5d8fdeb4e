"""Who may look at the page: a token, a cookie for browsers that gave it, and a limit on wrong guesses. Stdlib only."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from calib.errors import InputError
from edge.camera.frame import Clock

SHORTEST_TOKEN = 8
GUESSES = 5
"""Wrong tokens that one address has at once; one more comes every GUESS_EVERY_S."""
GUESS_EVERY_S = 10.0
ALL_GUESSES = 40
"""Likewise for all addresses together: whoever has many addresses gains little."""
ALL_EVERY_S = 2.0
ADDRESSES = 256
"""Addresses that are remembered; the one that was quiet for longest is forgotten first."""


def make_token() -> str:
    """128 bits from the operating system, as 22 characters that a person can copy."""
    return secrets.token_urlsafe(16)


def check_token(token: str) -> str:
    """The same token. Raises InputError for one that is short or that a header cannot carry."""
    if len(token) < SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise InputError(
            "not a token for the page",
            found=f"{len(token)} characters" if len(token) < SHORTEST_TOKEN else "a space, or a character beyond ASCII",
            allowed=f"at least {SHORTEST_TOKEN} printable ASCII characters without spaces",
            next_command="leave the token out: one is made and printed",
        )
    return token


def same(left: str, right: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())


@dataclass
class _Bucket:
    """Guesses that are left, and when that was counted."""

    left: float
    counted_s: float

    def refill(self, now_s: float, most: int, every_s: float) -> None:
        self.left = min(float(most), self.left + (now_s - self.counted_s) / every_s)
        self.counted_s = now_s


@dataclass
class Guesses:
    """Counts wrong tokens, per address (per /64 network of IPv6, which one person holds) and together; bounded memory."""

    clock: Clock
    _all: _Bucket = field(init=False)
    _by_address: OrderedDict[str, _Bucket] = field(init=False, default_factory=OrderedDict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._all = _Bucket(float(ALL_GUESSES), self.clock())

    def wait_s(self, address: str) -> float:
        """Seconds until a token from this address is looked at again; 0.0 now."""
        with self._lock:
            own = self._of(address)
            waits = ((1 - own.left) * GUESS_EVERY_S, (1 - self._all.left) * ALL_EVERY_S)
            return max(0.0, *waits)

    def wrong(self, address: str) -> None:
        """A wrong token came from this address."""
        with self._lock:
            self._of(address).left -= 1
            self._all.left -= 1

    def _of(self, address: str) -> _Bucket:
        now_s, key = self.clock(), _network(address)
        self._all.refill(now_s, ALL_GUESSES, ALL_EVERY_S)
        bucket = self._by_address.setdefault(key, _Bucket(float(GUESSES), now_s))
        bucket.refill(now_s, GUESSES, GUESS_EVERY_S)
        self._by_address.move_to_end(key)
        while len(self._by_address) > ADDRESSES:
            self._by_address.popitem(last=False)
        return bucket


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


class Access:
    """Decides on one request. With `token` None everybody who reaches the page may look.

    A browser gives the token once, in a form, and from then on a cookie; the cookie is drawn anew by every process, and its
    name holds the port, because browsers send one host's cookies to every port. Programs give `Authorization: Bearer TOKEN`.
    """

    def __init__(self, token: str | None, port: int, clock: Clock) -> None:
        self._token = token
        self._session = secrets.token_urlsafe(32)
        self._cookie = f"ufovit_page_{port}"
        self._guesses = Guesses(clock)

    @property
    def needed(self) -> bool:
        """Whether a token is asked for at all."""
        return self._token is not None

    @property
    def set_cookie(self) -> str:
        """The header that gives a browser its cookie: out of reach of scripts and of other sites."""
        return f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"

    def has_cookie(self, header: str) -> bool:
        """Whether a Cookie header holds the session."""
        try:
            morsel = SimpleCookie(header).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and same(morsel.value, self._session)

    def wait_s(self, address: str) -> float:
        """Seconds until this address may give a token; 0.0 now."""
        return self._guesses.wait_s(address)

    def accepts(self, token: str, address: str) -> bool:
        """Whether this is the token; a wrong one is counted. While `wait_s` is positive no token is looked at."""
        if self._token is None:
            return True
        if self.wait_s(address) > 0:
            return False
        if same(token, self._token):
            return True
        self._guesses.wrong(address)
        return False
