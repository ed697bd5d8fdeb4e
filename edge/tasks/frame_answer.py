"""What a network answers to one frame, as the camera hands it on: to a terminal, a program, a video, a page. numpy alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """One line for a person.

    Attributes:
        name: what is said.
        share: length of its bar, 0 to 1; None: it has none, or is no number.
        text: the figure behind it, `short` the same where there is little room; "" for none.
    """

    name: str
    share: float | None = None
    text: str = ""
    short: str = ""


@dataclass(frozen=True)
class Panel:
    """The answer on the page: a title with its figure, and bars, of which `leader` stands out (-1: none)."""

    title: str
    figure: str
    bars: tuple[Line, ...]
    leader: int = -1


@dataclass(frozen=True)
class PanelLayout:
    """What the page has to know of all panels: what the figure is, the longest title in letters, bars at most."""

    caption: str = ""
    longest: int = 0
    bars: int = 0


class FrameAnswer(ABC):
    """The answer to one frame."""

    @abstractmethod
    def json_fields(self) -> dict[str, Any]:
        """Its fields of a JSON line."""

    @abstractmethod
    def lines(self) -> tuple[Line, ...]:
        """For a person, the most important first."""

    @abstractmethod
    def panel(self) -> Panel:
        """For the page."""

    def draw(self, picture: Uint8) -> None:  # noqa: B027  # most answers draw nothing
        """Draw into a picture (H, W, 3), blue, green, red, in place; the lines are written over it afterwards."""
