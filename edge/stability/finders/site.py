"""What a finder returns. A finder searches an FP32 graph for one construct that a 16-bit format may not hold.

find_sites(model) -> tuple[Site, ...]      in graph order, raises InputError for a construct that it cannot describe
"""

from __future__ import annotations

from typing import Protocol


class Site(Protocol):
    """One place in a graph, by the names of its nodes and tensors. A finder's own class adds what its bounds need."""

    @property
    def name(self) -> str:
        """The node that identifies it."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that compute in FP32 where the site is an FP32 island, in graph order."""

    @property
    def argument(self) -> str:
        """The tensor whose range decides."""

    @property
    def output(self) -> str:
        """The tensor that the site computes."""
