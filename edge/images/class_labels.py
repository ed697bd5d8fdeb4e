"""From the name of a class, as folders and lists write it, to its position among the labels of a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from calib.errors import DataError

_DIGITS = 9  # of a class index
_LISTED = 20
_SHOWN = 100  # characters of a hostile name in a message


def label_index(name: str, labels: tuple[str, ...], where: object) -> int:
    """Index of a label written exactly, with other punctuation or case (`t-shirt_top` for `T-shirt/top`), or as an index."""
    index = find_label(name, labels)
    if index is None:
        raise DataError("labels do not match the network", where=where, found=name[:_SHOWN], allowed=list_labels(labels))
    return index


def list_labels(labels: tuple[str, ...]) -> str:
    """The labels as an error shows them: the first ones, and how many there are; where they are numbers, how to name them."""
    more = f" ... ({len(labels)} in all)" if len(labels) > _LISTED else ""
    numbers = labels == tuple(map(str, range(len(labels))))
    return ", ".join(labels[:_LISTED]) + more + ("; names need --labels FILE, one per line" if numbers else "")


def find_label(name: str, labels: tuple[str, ...]) -> int | None:
    """The index of `label_index`; None for a name that is not a label."""
    exact, spellings, _ = _label_positions(labels)
    index = exact.get(name, spellings.get(_plain(name)))
    if index is None and name.isdecimal() and len(name) <= _DIGITS and int(name) < len(labels):
        index = int(name)
    return index


def longest_label_words(labels: tuple[str, ...]) -> int:
    """The most words that a label may be written in."""
    return _label_positions(labels)[2]


@lru_cache(maxsize=4)
def _label_positions(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int], int]:
    """Positions of the labels as written, and of those whose plain spelling no other label shares; words of the longest."""
    plain = [_plain(label) for label in labels]
    times = Counter(plain)
    spellings = {spelling: index for index, spelling in enumerate(plain) if times[spelling] == 1}
    words = max((spelling.count("-") + 1 for spelling in plain), default=1)
    return {label: index for index, label in reversed([*enumerate(labels)])}, spellings, words


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", "-", label.casefold())
