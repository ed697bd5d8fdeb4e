"""The levels of a sequential test. Oracles: scipy's normal integrals, paths of Brownian motion, known drops and ratios."""

from statistics import NormalDist

import numpy as np
import pytest

from edge.drift.alpha_spending import look_levels, spent
from edge.drift.looks import Look, look_sizes, look_subset
from edge.images.labelled_images import ImageSet
from edge.tasks.interval import LEVEL, level_text
from scripts.bench import sequential_test as bench


def bounds(sizes):
    return [NormalDist().inv_cdf(0.5 + level / 2) for level in look_levels(sizes)]


@pytest.mark.parametrize("sizes", [(5, 10), (1, 2, 3), (1000, 2000, 6000, 10_000)])
def test_each_look_spends_its_part_of_the_error(sizes):
    """P(inside at all earlier looks, above the bound at this one) by scipy; at most 2.5 % t^2 up to share t, by hand."""
    stats = pytest.importorskip("scipy.stats")
    known, shares, before = bounds(sizes), np.array(sizes) / sizes[-1], 0.0
    for look in range(1, len(sizes) + 1):
        part = shares[:look]
        paths = stats.multivariate_normal(cov=np.sqrt(np.minimum.outer(part, part) / np.maximum.outer(part, part)), seed=1)
        inside = [-bound for bound in known[: look - 1]]
        above = paths.cdf([*known[: look - 1], 12.0], lower_limit=[*inside, known[look - 1]])
        assert above == pytest.approx(0.025 * (part[-1] ** 2 - before**2), abs=2e-6)
        before = part[-1]


def test_paths_leave_as_often_as_the_error_spent():
    """A hundred thousand paths; and with 1.96 at every look three times as many leave."""
    sizes = np.array([2, 3, 5, 10])
    steps = np.random.default_rng(7).standard_normal((100_000, 4)) * np.sqrt(np.diff([0, *sizes]) / 10)
    z = np.cumsum(steps, axis=1) / np.sqrt(sizes / 10)
    outside = (z >= bounds(sizes)).cumsum(axis=1) > 0
    for look, size in enumerate(sizes):
        assert outside[:, look].mean() == pytest.approx(spent(size / 10), abs=4 * np.sqrt(0.025 / 100_000))
    assert spent(1.0) == pytest.approx(0.025)
    assert (z >= 1.96).any(axis=1).mean() > 0.05


def test_one_look_is_the_plain_interval():
    assert look_levels([700]) == (LEVEL,)
    assert look_sizes(800) == (800,), "a first look of 480 would be too small"
    assert (level_text(LEVEL), level_text(0.999915), level_text(1 - 1e-12)) == ("95%", "99.99%", "99.99%")


@pytest.mark.parametrize("setting", [bench.TOP1[0], bench.TOP1[5], bench.TOP1[7]], ids=str)
def test_a_network_at_its_budget_is_judged_wrongly_as_rarely_as_stated(setting):
    """2.5 % on either side, and three standard errors of 2,000 runs; plain intervals at every look fail the same check."""

    def kept(found):
        return max(found.passes, found.fails) < 0.0355 and found.all_held > 0.935

    assert kept(bench.simulate(setting, 2000))
    assert not kept(bench.simulate(setting, 2000, [LEVEL] * len(look_sizes(setting.images))))


def test_the_interval_of_a_ratio_keeps_the_level_too():
    setting = bench.Noise(1000, 0.5, 0.5)
    found, plain = (bench.simulate(setting, 600, levels) for levels in (None, [LEVEL] * 2))
    assert found.all_held > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 600) > plain.all_held


def test_early_looks_decide_what_is_clear():
    clear, unclear = (bench.simulate(bench.Flips(10_000, 0.37, drop), 500, budget=0.005) for drop in (10, 0.4))
    assert (clear.fails, clear.stops[0]) == (1.0, 1.0)
    assert sum(unclear.stops[:3]) < 0.05


def test_the_tables_are_printed(capsys):
    bench.print_errors([bench.Noise(2000, 1.0, 0.5)], 20)
    bench.print_images(20)
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]) == 2 + 8


def images(count):
    return ImageSet("test", tuple(map(str, range(count))), np.arange(count), "ab" * 32, lambda i: np.full((1, 1, 1), i))


def test_every_look_holds_the_images_of_the_ones_before_spread_evenly():
    """Oracle: `ImageSet.take` of the next look's images."""
    everything, expected = images(3010), images(3010)
    sizes = look_sizes(3010)
    assert sizes == (602, 903, 1204, 1806, 3010)
    for number in range(len(sizes), 0, -1):
        expected = expected.take(sizes[number - 1])
        positions, sha256 = look_subset(everything.sha256, 3010, number)
        chosen = everything.at(positions, sha256)
        assert (chosen.names, chosen.sha256) == (expected.names, expected.sha256)
        assert chosen.pixels(1) == chosen.labels[1] == positions[1]
        assert np.diff(positions).max() <= 2 * 3010 / sizes[number - 1] + 1
    assert look_subset(everything.sha256, 3010, len(sizes))[1] == everything.sha256


@pytest.mark.parametrize(("number", "of", "available"), [(0, 6, 10_000), (7, 6, 10_000), (1, 5, 10_000), (1, 1, 100)])
def test_a_look_that_cannot_be_is_refused(number, of, available):
    with pytest.raises(ValueError, match="look"):
        Look(number, of, available)
    assert "3,000 of 10,000 images, look 3 of 6" in str(Look(3, 6, 10_000))
