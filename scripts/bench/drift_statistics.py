#!/usr/bin/env python3
"""Simulate the drift verdict: coverage of its interval, and rates of wrong and inconclusive verdicts.

    python scripts/bench/drift_statistics.py coverage --runs 10000
    python scripts/bench/drift_statistics.py alarms --runs 10000

`coverage` samples paired predictions at known rates and compares intervals of nominal 95 %: the toolkit's
(edge/drift/drop_interval.py), Newcombe's method 10 on the whole table, Tango's score, Agresti and Min's, and two of the paired
bootstrap. "Below" is the share of runs whose interval ends below the true drop: at the budget, these pass wrongly. "Above" is
the share whose interval begins above it. `alarms` samples the verdicts of builds with known drops. Every setting has its own
seed. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edge.tasks.classification.drop_interval import Paired, drop_limits, images_to_decide
from edge.tasks.interval import LEVEL, wilson_limits

SEED = 20240501
RESAMPLES = 1000
Z = 1.959963984540054  # of 95 %
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Limits = tuple[Floats, Floats]


@dataclass(frozen=True)
class Setting:
    """One row: images, and in percent the reference's accuracy, the share of predictions that flip, the true drop."""

    images: int
    accuracy: float
    flips: float
    drop: float

    @property
    def rates(self) -> list[float]:
        """Probabilities of both correct, correct to wrong, wrong to correct, both wrong."""
        lost, won = (self.flips + self.drop) / 200, (self.flips - self.drop) / 200
        right = self.accuracy / 100
        return [right - lost, lost, won, 1 - right - won]

    @property
    def expected_flips(self) -> float:
        """Expected number of flips in the sample."""
        return self.images * self.flips / 100


# The first is the shipped network in INT8. From 15 expected flips on, coverage is near 95 %; with fewer it is above.
MANY_FLIPS = (
    Setting(10_000, 94, 0.37, 0),
    Setting(10_000, 75, 0.5, 0.25),
    Setting(10_000, 50, 5, 2),
    Setting(5_000, 90, 0.5, 0.25),
    Setting(2_000, 99, 1, 0.5),
    Setting(2_000, 75, 1, 1),
    Setting(1_000, 90, 2, 0.5),
    Setting(1_000, 50, 2, 0),
    Setting(500, 75, 5, 1),
    Setting(500, 60, 5, 2),
    Setting(200, 90, 10, 2),
)
FEW_FLIPS = (
    Setting(10_000, 99, 0.02, 0.02),
    Setting(2_000, 75, 0.25, 0.25),
    Setting(1_000, 90, 0.15, 0),
    Setting(1_000, 50, 0.5, 0.5),
    Setting(500, 60, 0.5, 0.5),
    Setting(200, 50, 1, 1),
    Setting(200, 75, 5, 0),
)


def draw(setting: Setting, runs: int) -> Ints:
    """Sample tables (runs, 4) of paired predictions, always the same ones for a setting."""
    seed = [SEED, setting.images, *(round(1000 * x) for x in (setting.accuracy, setting.flips, setting.drop))]
    return np.random.default_rng(seed).multinomial(setting.images, setting.rates, size=runs)


# --- the intervals: tables (runs, 4) -> limits of the drop, as shares


def ours(tables: Ints) -> Limits:
    """The toolkit's interval: Newcombe's square-and-add on the flip rates."""
    return drop_limits(tables[:, 1], tables[:, 2], tables.sum(1), LEVEL)


def agresti_min(tables: Ints) -> Limits:
    """Wald interval with half an image added to each cell (Agresti and Min, Statistics in Medicine 24, 2005)."""
    b, c, n = tables[:, 1], tables[:, 2], tables.sum(1) + 2
    half = Z * np.sqrt(b + c + 1 - (b - c) ** 2 / n) / n
    return (b - c) / n - half, (b - c) / n + half


def newcombe(tables: Ints) -> Limits:
    """Method 10: square-and-add on the two accuracies, phi corrected for continuity (Newcombe 1998)."""
    a, b, c, d = tables.astype(np.float64).T
    n = a + b + c + d
    p, q = (a + b) / n, (a + c) / n
    (low_p, high_p), (low_q, high_q) = wilson_limits(a + b, n), wilson_limits(a + c, n)
    surplus = a * d - b * c
    corrected = np.where(surplus > 0, np.maximum(surplus - n / 2, 0), surplus)
    product = (a + b) * (c + d) * (a + c) * (b + d)
    phi = np.divide(corrected, np.sqrt(product), out=np.zeros_like(n), where=product > 0)

    def side(x: Floats, y: Floats) -> Floats:
        return np.asarray(np.sqrt(np.maximum(x**2 - 2 * phi * x * y + y**2, 0)))

    return p - q - side(p - low_p, high_q - q), p - q + side(high_p - p, q - low_q)


def tango(tables: Ints) -> Limits:
    """The drops that Tango's score test does not reject (Statistics in Medicine 17, 1998, 891-908), by bisection.

    At drop t the maximum likelihood rate q of wrong to right solves 2n q^2 - (b + c - t (2n - b + c)) q - c t (1 - t) = 0; the
    score is (b - c - n t) / sqrt(n (2q + t (1 - t))).
    """

    def upper(b: Floats, c: Floats, n: Floats) -> Floats:
        held, rejected = (b - c) / n, np.ones_like(n)
        for _ in range(50):
            t = (held + rejected) / 2
            linear = b + c - t * (2 * n - b + c)
            q = (linear + np.sqrt(np.maximum(linear**2 + 8 * n * c * t * (1 - t), 0))) / (4 * n)
            inside = (b - c - n * t) ** 2 <= Z**2 * n * (2 * q + t * (1 - t))
            held, rejected = np.where(inside, t, held), np.where(inside, rejected, t)
        return held

    _, b, c, _ = tables.astype(np.float64).T
    n = tables.sum(1).astype(np.float64)
    return -upper(c, b, n), upper(b, c, n)


def percentile_bootstrap(tables: Ints) -> Limits:
    """2.5 and 97.5 % quantiles of the drop of resampled images (Efron 1979)."""
    return _bootstrap(tables, accelerated=False)


def bca_bootstrap(tables: Ints) -> Limits:
    """The same with bias correction and acceleration (Efron, JASA 82, 1987)."""
    return _bootstrap(tables, accelerated=True)


def _bootstrap(tables: Ints, *, accelerated: bool) -> Limits:
    """Resample each distinct pair of flip counts RESAMPLES times."""
    flips, where = np.unique(np.column_stack([tables[:, 1:3], tables.sum(1)]), axis=0, return_inverse=True)
    limits = np.empty((len(flips), 2))
    rng = np.random.default_rng(SEED)
    for start in range(0, len(flips), 1000):
        b, c, n = flips[start : start + 1000].T
        rates = np.column_stack([b, c, n - b - c]) / n[:, None]
        resampled = rng.multinomial(n[:, None], rates[:, None, :], size=(len(n), RESAMPLES))
        drops = np.sort((resampled[..., 0] - resampled[..., 1]) / n[:, None], axis=1)
        shares = _bca_shares(b, c, n, drops) if accelerated else np.tile([0.025, 0.975], (len(n), 1))
        ranks = np.clip(np.rint(shares * (RESAMPLES + 1)) - 1, 0, RESAMPLES - 1).astype(int)
        limits[start : start + 1000] = np.take_along_axis(drops, ranks, axis=1)
    low, high = limits[where.ravel()].T
    return low, high


def _bca_shares(b: Ints, c: Ints, n: Ints, drops: Floats) -> Floats:
    """Quantiles (cases, 2) of the resampled drops that are the limits. Ties count half."""
    from scipy.special import ndtr, ndtri

    d = (b - c) / n
    below = ((drops < d[:, None]).mean(1) + (drops <= d[:, None]).mean(1)) / 2
    bias = ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    cubes = b * (1 - d) ** 3 - c * (1 + d) ** 3 - (n - b - c) * d**3
    squares = b * (1 - d) ** 2 + c * (1 + d) ** 2 + (n - b - c) * d**2
    acceleration = np.divide(cubes, 6 * squares**1.5, out=np.zeros(len(n)), where=squares > 0)
    z = bias[:, None] + np.array([-Z, Z])
    return np.asarray(ndtr(bias[:, None] + z / (1 - acceleration[:, None] * z)))


METHODS: dict[str, Callable[[Ints], Limits]] = {
    "this toolkit": ours,
    "Newcombe 10": newcombe,
    "Tango": tango,
    "Agresti-Min": agresti_min,
    "bootstrap, percentile": percentile_bootstrap,
    "bootstrap, BCa": bca_bootstrap,
}


# --- the tables


@dataclass(frozen=True)
class Coverage:
    """Shares of the runs in [0, 1], mean width in points."""

    coverage: float
    below: float
    above: float
    width: float


def covered(method: Callable[[Ints], Limits], setting: Setting, runs: int) -> Coverage:
    """Share of the runs in which a method's interval contains the true drop."""
    low, high = method(draw(setting, runs))
    truth, rounding = setting.drop / 100, 1e-12
    below, above = float((high < truth - rounding).mean()), float((low > truth + rounding).mean())
    return Coverage(1 - below - above, below, above, 100 * float((high - low).mean()))


def coverage(runs: int) -> None:
    """Print the coverage of every method in every setting."""
    print(f"Coverage in % (below + above), mean width in points; {runs:,} runs, {RESAMPLES:,} resamples.\n")
    head = ["images", "correct, %", "flips, %", "drop", "flips expected", *METHODS]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for setting in MANY_FLIPS + FEW_FLIPS:
        cells = [f"{setting.images:,}", f"{setting.accuracy:g}", f"{setting.flips:g}", f"{setting.drop:g}"]
        cells.append(f"{setting.expected_flips:g}")
        for method in METHODS.values():
            x = covered(method, setting, runs)
            cells.append(f"{x.coverage:.1%} ({x.below:.1%} + {x.above:.1%}), {x.width:.2f}".replace("%", ""))
        print(f"| {' | '.join(cells)} |", flush=True)


def verdicts(setting: Setting, budget: float, runs: int) -> tuple[float, float, float]:
    """Shares of the runs that pass, are inconclusive, and fail."""
    low, high = ours(draw(setting, runs))
    passed, failed = float((100 * high <= budget).mean()), float((100 * low > budget).mean())
    return passed, 1 - passed - failed, failed


def alarms(runs: int, flips: float, budget: float) -> None:
    """Print verdicts of builds with known true drops; `flips`, in percent, are symmetric and the drop is added to them."""
    sizes = (500, 1000, 2000, 10_000)
    print(f"Pass / inconclusive / fail in %; budget {budget:g} points, {flips:g} % flips besides the drop, {runs:,} runs.\n")
    print(f"| true drop | {' | '.join(f'{n:,} images' for n in sizes)} | images to decide |\n|{'---|' * (len(sizes) + 2)}")
    for drop in (0.0, 0.25, 0.5, 1.0, 2.0):
        settings = [Setting(n, 90, flips + drop, drop) for n in sizes]
        cells = [_verdict_cell(setting, budget, runs) for setting in settings]
        lost, won = (round(1e6 * rate) for rate in settings[0].rates[1:3])
        needed = images_to_decide(Paired(1_000_000 - lost - won, lost, won, 0), budget)
        last = (
            "none" if needed is None else f"{needed:,}: {_verdict_cell(Setting(needed, 90, flips + drop, drop), budget, runs)}"
        )
        print(f"| {drop:g} | {' | '.join([*cells, last])} |")


def _verdict_cell(setting: Setting, budget: float, runs: int) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in verdicts(setting, budget, runs))


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the drift verdict.")
    parser.add_argument("table", choices=["coverage", "alarms"])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--flips", type=float, default=0.37, help="for alarms, percent; default: the shipped network in INT8")
    parser.add_argument("--budget", type=float, default=0.5, help="for alarms, points")
    args = parser.parse_args()
    if args.table == "coverage":
        coverage(args.runs)
    else:
        alarms(args.runs, args.flips, args.budget)


if __name__ == "__main__":
    main()
