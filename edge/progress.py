"""Progress of a long step, as its caller sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[float], None]
"""Called with the share done, 0 to 1."""


class Progress(Protocol):
    """A watcher: the command line has one, tests and programs may pass `Silent`."""

    def say(self, text: str) -> None:
        """One line of information."""

    def task(self, title: str) -> AbstractContextManager[Advance]:
        """A long step: entered when it starts, left when it ends, informed of its progress in between."""


class Silent:
    """Watches nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def task(self, title: str) -> AbstractContextManager[Advance]:  # noqa: ARG002  # as the protocol has it
        """Drop the progress."""
        return nullcontext(lambda _share: None)
