"""The answer to one frame, in the form that the camera shows: JSON, terminal lines, video overlay, web page. numpy alone."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """One line of text with a bar of length `share`, 0 to 1 (None: no bar), and its figure, long and short ("": none)."""

    name: str
    share: float | None = None
    text: str = ""
    short: str = ""


@dataclass(frozen=True)
class Panel:
    """The answer on the web page: a title with its figure, and bars, of which number `leader` is highlighted (-1: none)."""

    title: str
    figure: str
    bars: tuple[Line, ...]
    leader: int = -1


@dataclass(frozen=True)
class PanelLayout:
    """What all panels have in common: the name of the figure, letters of the longest title, largest number of bars."""

    caption: str = ""
    longest: int = 0
    bars: int = 0


class FrameAnswer(ABC):
    """The answer to one frame."""

    @abstractmethod
    def json_fields(self) -> dict[str, Any]:
        """Fields of a JSON line."""

    @abstractmethod
    def lines(self) -> tuple[Line, ...]:
        """Lines of text, the most important first."""

    @abstractmethod
    def panel(self) -> Panel:
        """The answer on the web page."""

    def draw(self, picture: Uint8) -> None:  # noqa: B027  # most answers draw nothing
        """Draw into a BGR picture (H, W, 3) in place; the lines are written over it afterwards."""
