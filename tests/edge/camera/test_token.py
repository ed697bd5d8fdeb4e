"""Token, cookie and wrong guesses. Oracle: what the rules say, counted by hand with a clock of the test's own."""

from __future__ import annotations

import hmac
from http.cookies import SimpleCookie

import pytest

from calib.errors import InputError
from edge.camera.web import token as module
from edge.camera.web.token import (
    ALL_GUESSES,
    GUESS_EVERY_S,
    GUESSES,
    MAX_ADDRESSES,
    MAX_OWNERS,
    REMEMBERED_S,
    TokenAuth,
    check_token,
    make_token,
)

TOKEN = "correct-horse"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> TokenAuth:
    return TokenAuth(TOKEN, 8080, clock)


def test_only_the_token_is_accepted(access: TokenAuth) -> None:
    assert access.accepts(TOKEN, "10.0.0.1")
    for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 9):
        assert not access.accepts(wrong, f"10.0.1.{len(wrong)}")


def test_it_is_compared_in_constant_time(access: TokenAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append({left, right})
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert not access.accepts("wrong-token", "10.0.0.1")
    assert not access.has_cookie("ufovit_page_8080=nonsense")
    assert {b"wrong-token", TOKEN.encode()} in compared
    assert any(b"nonsense" in pair for pair in compared)


def test_guesses_of_one_address_run_out_and_come_back(access: TokenAuth, clock: Clock) -> None:
    for _ in range(GUESSES):
        assert access.wait_s("10.0.0.1") == 0
        assert not access.accepts("wrong", "10.0.0.1")
    assert access.wait_s("10.0.0.1") == pytest.approx(GUESS_EVERY_S)
    assert not access.accepts(TOKEN, "10.0.0.1"), "while it waits, not even the right one is looked at"
    assert access.accepts(TOKEN, "10.0.0.2"), "others are not made to wait"
    clock.now += GUESS_EVERY_S - 0.1
    assert access.wait_s("10.0.0.1") > 0
    clock.now += 0.2
    assert access.accepts(TOKEN, "10.0.0.1")


def test_the_right_token_costs_no_guess(access: TokenAuth) -> None:
    assert all(access.accepts(TOKEN, "10.0.0.1") for _ in range(10 * GUESSES))


def stranger(n: int) -> str:
    return f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"


def guess(access: TokenAuth, address: str, times: int = 1) -> int:
    """How many of so many wrong tokens were looked at."""
    return sum(access.wait_s(address) == 0 and not access.accepts("wrong", address) for _ in range(times))


def test_the_guesses_of_strangers_do_not_lock_the_token_out(access: TokenAuth) -> None:
    """A thousand addresses use up every limit: the token is accepted where it was sent before, and anywhere else."""
    assert access.accepts(TOKEN, "192.168.0.7")
    assert guess(access, "192.168.0.7") == 1, "a slip of the owner's"
    for n in range(1000):
        guess(access, stranger(n), 50)
    assert access.wait_s(stranger(3)) > 60, "they wait"
    assert access.accepts(TOKEN, "192.168.0.7")
    assert guess(access, "192.168.0.8", 2) == 2, "a slip at another place"
    assert access.accepts(TOKEN, "192.168.0.8")


def test_however_many_addresses_guess_the_token_stays_with_its_owner(access: TokenAuth) -> None:
    assert access.accepts(TOKEN, "192.168.0.7")
    for n in range(2 * MAX_ADDRESSES):
        guess(access, stranger(n))
    assert access.accepts(TOKEN, "192.168.0.7")


def test_many_addresses_together_guess_slowly(access: TokenAuth, clock: Clock) -> None:
    """Four hours of guesses from three times as many addresses as are remembered, every address twice an hour."""
    tried = 0
    for _hour in range(4):
        for n in range(6 * MAX_ADDRESSES):
            tried += guess(access, stranger(n % (3 * MAX_ADDRESSES)))
            clock.now += REMEMBERED_S / (6 * MAX_ADDRESSES)
    assert tried / (4 * REMEMBERED_S) < 7
    assert tried > ALL_GUESSES, "the check is not empty"


def test_a_guesser_that_was_quiet_is_forgotten(access: TokenAuth, clock: Clock) -> None:
    for n in range(GUESSES + ALL_GUESSES):
        guess(access, stranger(n), GUESSES)
    assert access.wait_s(stranger(0)) > GUESS_EVERY_S
    clock.now += 2 * REMEMBERED_S
    assert access.wait_s(stranger(0)) == 0
    assert not access._guessers


def test_one_ipv6_network_is_one_guesser(access: TokenAuth) -> None:
    for n in range(GUESSES):
        access.accepts("wrong", f"2001:db8::{n + 1}")
    assert access.wait_s("2001:db8::ffff") > 0
    assert access.wait_s("2001:db8:0:1::1") == 0


def test_addresses_are_not_remembered_without_end(access: TokenAuth) -> None:
    for n in range(3 * MAX_ADDRESSES):
        guess(access, stranger(n))
        access.accepts(TOKEN, stranger(1 << 20 | n))
    assert len(access._guessers) <= MAX_ADDRESSES
    assert len(access._owners) <= MAX_OWNERS


def test_the_cookie_is_out_of_reach_and_proves_the_session(access: TokenAuth) -> None:
    cookie = SimpleCookie(access.set_cookie)
    (morsel,) = cookie.values()
    assert morsel["httponly"]
    assert morsel["samesite"] == "Strict"
    assert morsel["path"] == "/"
    assert not morsel["domain"]
    assert TOKEN not in access.set_cookie
    good = f"{morsel.key}={morsel.value}"
    assert access.has_cookie(good)
    assert access.has_cookie(f"other=1; {good}")
    for wrong in ("", f"{morsel.key}=", good[:-1], f"x{good}", f"{morsel.key}={TOKEN}", "=;=;", 'a="\\', "a" * 9000):
        assert not access.has_cookie(wrong), wrong
    assert not TokenAuth(TOKEN, 8080, Clock()).has_cookie(good), "a camera that was restarted asks again"


def test_without_a_token_everybody_may_look(clock: Clock) -> None:
    open_to_all = TokenAuth(None, 8080, clock)
    assert not open_to_all.needed
    assert open_to_all.accepts("anything", "10.0.0.1")


def test_made_tokens_are_long_and_never_the_same() -> None:
    made = {make_token() for _ in range(100)}
    assert len(made) == 100
    assert {len(token) for token in made} == {22}
    assert all(check_token(token) == token for token in made)


@pytest.mark.parametrize("token", ["", "short", "seven77", "with a space", "ümläüte-sind-keine", "new\nline-in-it", "\x7f" * 9])
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(InputError, match=r"(?s)unsuitable token.*at least 8") as raised:
        check_token(token)
    assert not token or token not in str(raised.value), "a secret does not belong into a message"


def test_the_secrets_come_from_the_operating_system() -> None:
    assert module.secrets.token_urlsafe.__module__ == "secrets"
