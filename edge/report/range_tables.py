"""Report tables of the calibrated ranges: an overview of all activations, then one table with bars per block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import NullFormatter

from edge.report.svg import draw
from edge.tasks.report_parts import ACCENT, LINE, Drawing, shorten

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from calib.calibration_table import CalibrationTable

LONGEST_NAME = 30
GROUP_BARS = 36
"""Bars in one table; a longer group is continued in the next."""
NAMED_BLOCKS = 24
"""Blocks that an axis can name legibly."""


def block_of(tensor: str) -> str:
    """The block of the network that a tensor belongs to, from its module path.

    `blocks.3.attn.q/Add_output` -> `blocks.3`; as TorchScript writes it, `/blocks/blocks.3/attn/q/Add_output_0` too.
    """
    if tensor.startswith("/"):
        modules = tensor.strip("/").split("/")[:-1]
        return next((name for name in modules if name.rpartition(".")[2].isdigit()), modules[0] if modules else "other")
    module, slash, _ = tensor.partition("/")
    if not slash:
        return tensor if tensor.isidentifier() else "other"
    parts = module.split(".")
    numbered = len(parts) > 1 and parts[1].isdigit() and parts[0].endswith("blocks")
    return ".".join(parts[: 2 if numbered else 1]) or "other"


def name_blocks(axes: Axes, names: Sequence[str]) -> None:
    """Name the blocks of the network below the bars, at most NAMED_BLOCKS, and separate them by lines in every panel."""
    starts = [i for i, name in enumerate(names) if i == 0 or block_of(name) != block_of(names[i - 1])]
    named: list[int] = []
    for start in starts:
        if not named or start - named[-1] >= len(names) / NAMED_BLOCKS:
            named.append(start)
    axes.set_xticks(named, [shorten(block_of(names[i]), 16) for i in named], rotation=90, ha="center")
    for panel in axes.figure.axes:
        for start in starts[1:]:
            panel.axvline(start - 0.5, color=LINE, linewidth=0.4)


def groups(order: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Tensors by block, blocks in order of first appearance, none longer than GROUP_BARS; loose tensors share one group."""
    by_block: dict[str, list[str]] = {}
    for tensor in order:
        by_block.setdefault(block_of(tensor), []).append(tensor)
    merged: dict[str, list[str]] = {}
    for block, tensors in by_block.items():
        merged.setdefault("input and single layers" if len(tensors) == 1 else block, []).extend(tensors)
    return [
        (f"{block}, continued" if start else block, tuple(tensors[start : start + GROUP_BARS]))
        for block, tensors in merged.items()
        for start in range(0, len(tensors), GROUP_BARS)
    ]


def overview(table: CalibrationTable, order: tuple[str, ...]) -> Markup:
    """amax of every tensor in network order, on a logarithmic axis, with the blocks marked."""
    amax = np.array([table.tensors[name].amax for name in order])
    axis = Axis.of(table)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.vlines(range(len(order)), axis.low, amax, color=ACCENT, linewidth=max(0.8, min(6.0, 380 / len(order) * 0.7)))
        name_blocks(axes, order)
        axes.set(xlim=(-1, len(order)), ylim=(axis.low, axis.high), ylabel="amax")
        axes.grid(axis="y")
        axes.tick_params(length=0)

    return draw(Drawing("ranges", (7.4, 2.7), f"largest magnitude of {len(order)} tensors in network order", paint))


@dataclass(frozen=True)
class Axis:
    """The logarithmic axis of all bars, which start at `low`, a power of ten."""

    low: float
    high: float

    @classmethod
    def of(cls, table: CalibrationTable) -> Axis:
        """The axis that holds every amax of a table."""
        amax = np.array([scale.amax for scale in table.tensors.values()])
        return cls(10.0 ** math.floor(math.log10(amax.min()) - 0.05), float(amax.max()) * 1.3)

    def percent(self, factor: float) -> float:
        """Length of a factor in percent of the axis."""
        return 100 * math.log(factor) / math.log(self.high / self.low)


def name_in_block(tensor: str, title: str) -> str:
    """A tensor's name inside the block that its table has as title."""
    block = title.removesuffix(", continued")
    return shorten(tensor.removeprefix(block).lstrip("./").removesuffix("_output"), LONGEST_NAME)
