#!/usr/bin/env python3
"""Simulate the sequential verdict (`--images sequential`): wrong verdicts at the budget, coverage and images at each look.

    python scripts/bench/sequential_test.py top1 --runs 10000
    python scripts/bench/sequential_test.py sqnr --runs 10000

A network exactly at its budget is judged at every look of edge/drift/looks.py until its interval decides. "Passes" and "fails"
are shares of the runs that end so: both are wrong, and 2.5 % each are allowed. "Held" is the share of runs whose intervals hold
the true value at this look, and at all looks up to the last whether the test had stopped or not. Each table has the same with
plain 95 % intervals at every look. `top1` samples flips, `sqnr` the noise of images. Every setting has its own seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edge.drift.alpha_spending import look_levels
from edge.drift.looks import look_sizes
from edge.tasks.classification.drop_interval import drop_limits
from edge.tasks.interval import LEVEL
from edge.tasks.tensors.ratio_interval import half_width

SEED = 20261130
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Flips:
    """Images, in percent the share of answers that flip besides the drop, and the true drop, which is the budget."""

    images: int
    flips: float
    drop: float

    def __str__(self) -> str:
        return f"{self.images:,} images, {self.flips:g} % flips, drop {self.drop:g}"

    def limits(self, runs: int, levels: Sequence[float]) -> tuple[Floats, Floats, float]:
        """Limits (looks, runs) of the drop, and the true drop."""
        sizes = look_sizes(self.images)
        rng = np.random.default_rng([SEED, self.images, round(1000 * self.flips), round(1000 * self.drop)])
        rates = [(self.flips / 2 + self.drop) / 100, self.flips / 200]
        groups = [rng.multinomial(new, [*rates, 1 - sum(rates)], size=runs) for new in np.diff([0, *sizes])]
        flips = np.cumsum([group[:, :2] for group in groups], axis=0)
        ends = [drop_limits(seen[:, 0], seen[:, 1], n, level) for seen, n, level in zip(flips, sizes, levels, strict=True)]
        return np.array([low for low, _ in ends]), np.array([high for _, high in ends]), rates[0] - rates[1]


@dataclass(frozen=True)
class Noise:
    """Images whose noise and signal are lognormal with these standard deviations of the logarithm."""

    images: int
    noise: float
    signal: float

    def __str__(self) -> str:
        return f"{self.images:,} images, noise lognormal {self.noise:g}, signal {self.signal:g}"

    def limits(self, runs: int, levels: Sequence[float]) -> tuple[Floats, Floats, float]:
        """Limits (looks, runs) of ln(noise / signal), and the true value."""
        sizes = look_sizes(self.images)
        rng = np.random.default_rng([SEED, self.images, round(100 * self.noise), round(100 * self.signal)])
        middle, half = np.empty((2, len(sizes), runs))
        for run in range(runs):
            noise, signal = (np.exp(sigma * rng.standard_normal(self.images)) for sigma in (self.noise, self.signal))
            for look, (size, level) in enumerate(zip(sizes, levels, strict=True)):
                middle[look, run] = np.log(noise[:size].sum() / signal[:size].sum())
                half[look, run] = half_width(noise[:size], signal[:size], level) or np.inf
        return middle - half, middle + half, (self.noise**2 - self.signal**2) / 2


TOP1 = (
    Flips(10_000, 0.37, 0.5), Flips(10_000, 0.37, 0.25), Flips(10_000, 2, 0.5), Flips(10_000, 10, 2), Flips(50_000, 1, 0.5),
    Flips(5_000, 2, 0.5), Flips(2_000, 4, 1), Flips(1_000, 5, 2),
)  # fmt: skip
SQNR = (Noise(5_000, 0.5, 0.5), Noise(5_000, 1.0, 0.5), Noise(2_000, 0.5, 0.0))


@dataclass(frozen=True)
class Verdicts:
    """Shares of the runs.

    Attributes:
        passes, fails: of the runs judged at the first look whose interval decides; budget and true value are equal.
        held: at each look.
        all_held: at every look of a run.
        stops: share decided at each look.
    """

    passes: float
    fails: float
    held: tuple[float, ...]
    all_held: float
    stops: tuple[float, ...]


def simulate(setting: Flips | Noise, runs: int, levels: Sequence[float] | None = None, budget: float | None = None) -> Verdicts:
    """Judge a setting at every look with intervals of these levels, those of the toolkit by default.

    The budget is the true value unless one is given, in the unit of the limits.
    """
    low, high, truth = setting.limits(runs, look_levels(look_sizes(setting.images)) if levels is None else levels)
    allowed, rounding = truth if budget is None else budget, 1e-12
    passed, failed = high <= allowed - rounding, low > allowed + rounding
    decided = passed | failed
    first = np.where(decided.any(0), decided.argmax(0), -1)
    stops = [float((first == look).mean()) for look in range(len(low))]
    at, every = np.maximum(first, 0), np.arange(runs)
    held = (low <= truth + rounding) & (high >= truth - rounding)
    passes = float((passed[at, every] & (first >= 0)).mean())
    fails, at_each = max(0.0, sum(stops) - passes), tuple(map(float, held.mean(1)))
    return Verdicts(passes, fails, at_each, float(held.all(0).mean()), tuple(stops))


def print_errors(settings: Sequence[Flips | Noise], runs: int) -> None:
    """Print wrong verdicts and coverage of networks exactly at their budget."""
    print(f"In %, {runs:,} runs; in brackets with plain {LEVEL:.0%} intervals at every look.\n")
    head = ("network at the budget", "looks", "passes", "fails", "held at each look", "held at all")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for setting in settings:
        sizes = look_sizes(setting.images)
        ours, plain = simulate(setting, runs), simulate(setting, runs, [LEVEL] * len(sizes))
        pairs = [f"{100 * getattr(ours, x):.1f} ({100 * getattr(plain, x):.1f})" for x in ("passes", "fails", "all_held")]
        held = ", ".join(f"{100 * share:.2f}" for share in ours.held)
        looks = ", ".join(f"{size:,}" for size in sizes)
        print(f"| {setting} | {looks} | {pairs[0]} | {pairs[1]} | {held} | {pairs[2]} |", flush=True)


def print_images(runs: int) -> None:
    """Print where networks of known drops stop, at a budget of 0.5 points and 10,000 images."""
    sizes = look_sizes(10_000)
    print(f"\nVerdicts in %, {runs:,} runs; budget 0.5 points, 10,000 images, 0.37 % flips besides the drop.\n")
    head = ("true drop", "passes", "fails", *(f"at {size:,}" for size in sizes), "images, mean")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for drop in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 10.0):
        found = simulate(Flips(10_000, 0.37, drop), runs, budget=0.005)
        mean = sum(size * share for size, share in zip(sizes, found.stops, strict=True)) + sizes[-1] * (1 - sum(found.stops))
        cells = [f"{100 * share:.1f}" for share in (found.passes, found.fails, *found.stops)]
        print(f"| {drop:g} | {' | '.join(cells)} | {mean:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the sequential verdict.")
    parser.add_argument("table", choices=["top1", "sqnr"])
    parser.add_argument("--runs", type=int, default=10_000)
    args = parser.parse_args()
    print_errors(TOP1 if args.table == "top1" else SQNR, args.runs)
    if args.table == "top1":
        print_images(args.runs)


if __name__ == "__main__":
    main()
