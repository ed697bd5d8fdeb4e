"""Text that names, labels, notes and errors bring along, made safe to show: on a terminal, in a report, on a video.

An escape sequence in the name of a node could rewrite what a terminal shows, and a bidirectional override could reverse it.
Standard library only.
"""

import re

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and line feed
    "\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # unseen, or reorder
    "\u2028\u2029"  # line ends to some programs
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # no characters: lone surrogates cannot be encoded
    "]"
)


def printable(text: str) -> str:
    r"""The text with every character that is hidden, or steers a terminal, written as its escape, such as \x1b or \u202e."""
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """Like `printable`, with every run of white space a single space."""
    return printable(" ".join(re.split(r"[ \t\n]+", text.strip(" \t\n"))))
