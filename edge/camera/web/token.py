"""Who may view the page: a token, a cookie for browsers that gave it, and a limit on wrong guesses. Stdlib only."""

import hmac
import ipaddress
import math
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from calib.errors import UsageError
from edge.camera.frame import Clock
from edge.camera.web.bind_address import parse_ip

MIN_TOKEN = 8
GUESSES = 5
"""Wrong tokens that one address may send at once; one more is allowed every GUESS_EVERY_S."""
GUESS_EVERY_S = 10.0
ALL_GUESSES = 40
"""Likewise for all guessers together; a guesser is an address that sent GUESSES wrong tokens."""
ALL_EVERY_S = 2.0
MAX_ADDRESSES = 4096
"""Addresses with wrong tokens that are remembered; beyond them every unknown address counts as a guesser."""
REMEMBERED_S = 3600.0
"""An address that sent no wrong token for so long is forgotten."""
MAX_OWNERS = 64
"""Addresses that sent the token; the one that sent it longest ago is forgotten first."""


@dataclass(frozen=True)
class _Guesses:
    """Wrong tokens of one address: how many, when its bucket is full again, when the last one came."""

    count: int = 0
    full_at: float = -math.inf
    last_s: float = -math.inf


_NONE = _Guesses()


def make_token() -> str:
    """128 bits from the operating system, as 22 characters that a person can copy."""
    return secrets.token_urlsafe(16)


def check_token(token: str, where: object = "--token") -> str:
    """Return `token`. Raises UsageError, which names `where`, for one that is too short or that a header cannot carry."""
    if len(token) < MIN_TOKEN or not all("!" <= character <= "~" for character in token):
        raise UsageError(
            "unsuitable token for the page",
            where=where,
            found=f"{len(token)} characters" if len(token) < MIN_TOKEN else "a space, or a character beyond ASCII",
            allowed=f"at least {MIN_TOKEN} printable ASCII characters without spaces",
            next_command="omit the token: one is made and printed",
        )
    return token


class TokenAuth:
    """Decides on one request. With `token` None everyone who reaches the page may view it.

    A browser gives the token once, in a form, and from then on a cookie. Every process generates a new cookie, and its name
    holds the port, because browsers send one host's cookies to every port. Programs send `Authorization: Bearer TOKEN`.

    Wrong tokens are limited per address (per /64 network of IPv6, which one person holds), and those of all guessers together,
    in bounded memory. The limit of the guessers holds for them alone: an address that sent the token before, or fewer wrong
    ones than GUESSES, has its own limit only, so that a stranger does not lock the token out. However many addresses guess,
    no more than MAX_ADDRESSES * GUESSES / REMEMBERED_S + 1 / ALL_EVERY_S tokens are tried per second, about six.

    A token bucket of n guesses, refilled by one every T seconds, is kept as the time f at which it is full again: a guess sets
    f = max(f, now) + T, and one is left once now >= f - (n - 1) T.
    """

    def __init__(self, token: str | None, port: int, clock: Clock) -> None:
        self.needed = token is not None
        self._token, self._clock = token or "", clock
        self._session = secrets.token_urlsafe(32)
        self._cookie = f"ufovit_page_{port}"
        self.set_cookie = f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
        self._all_full_at = -math.inf
        self._guessers: OrderedDict[str, _Guesses] = OrderedDict()
        self._owners: OrderedDict[str, None] = OrderedDict()

    def has_cookie(self, header: str) -> bool:
        """Whether a Cookie header holds the session."""
        try:
            morsel = SimpleCookie(header).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._session.encode())

    def wait_s(self, address: str) -> float:
        """Seconds until this address may send a token; 0.0: now."""
        network = _network(address)
        guesses = self._guesses_of(network)
        free_s = guesses.full_at - (GUESSES - 1) * GUESS_EVERY_S
        many = guesses.count >= GUESSES or (len(self._guessers) >= MAX_ADDRESSES and network not in self._guessers)
        if many and network not in self._owners:
            free_s = max(free_s, self._all_full_at - (ALL_GUESSES - 1) * ALL_EVERY_S)
        return max(0.0, free_s - self._clock())

    def accepts(self, token: str, address: str) -> bool:
        """Whether this is the token; a wrong one is counted. While `wait_s` is positive no token is checked."""
        if not self.needed:
            return True
        if self.wait_s(address) > 0:
            return False
        network, now_s = _network(address), self._clock()
        if hmac.compare_digest(token.encode(errors="replace"), self._token.encode()):
            self._owners[network] = None
            self._owners.move_to_end(network)
            if len(self._owners) > MAX_OWNERS:
                self._owners.popitem(last=False)
            return True
        before = self._guesses_of(network)
        if network in self._guessers or network in self._owners or len(self._guessers) < MAX_ADDRESSES:
            self._guessers[network] = _Guesses(before.count + 1, max(before.full_at, now_s) + GUESS_EVERY_S, now_s)
            self._guessers.move_to_end(network)
        self._all_full_at = max(self._all_full_at, now_s) + ALL_EVERY_S
        return False

    def _guesses_of(self, network: str) -> _Guesses:
        """What is remembered of an address; what is older than REMEMBERED_S is forgotten first."""
        now_s = self._clock()
        while self._guessers and next(iter(self._guessers.values())).last_s < now_s - REMEMBERED_S:
            self._guessers.popitem(last=False)
        return self._guessers.get(network, _NONE)


def _network(address: str) -> str:
    parsed = parse_ip(address)
    if parsed is None:
        return address[:64]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
