"""Which method of plain calibration is kept, by figures made up for each of them."""

import pytest

from calib.held_out import Figures
from calib.refine.best_method import best_method


def choose(**decibels):
    """Choose by figures of mse, minmax, rare (the percentile) and between (weighted_mse), alike overall and in the middle."""
    names = {"rare": "percentile:99.999", "between": "weighted_mse"}
    known = {names.get(name, name): Figures(value, value) for name, value in decibels.items()}
    kept, figures = best_method(known.__getitem__)
    return kept, set(known) - set(figures)


@pytest.mark.parametrize(
    ("decibels", "expected"),
    [
        ({"mse": 30, "minmax": 29, "rare": 30.4, "between": 40}, ("mse", {"weighted_mse"})),
        ({"mse": 30, "minmax": 29, "rare": 30.6, "between": 40}, ("percentile:99.999", {"weighted_mse"})),
        ({"mse": 30, "minmax": 30.1, "rare": 29, "between": 30.6}, ("weighted_mse", set())),
        ({"mse": 30, "minmax": 31, "rare": 31.4, "between": 31.4}, ("minmax", set())),
        ({"mse": 10, "minmax": 9, "rare": 9.9, "between": 10.1}, ("weighted_mse", set())),
        ({"mse": 10, "minmax": 9, "rare": 10, "between": 10}, ("mse", set())),
        ({"mse": -3, "minmax": -2, "rare": -1.9, "between": -4}, ("percentile:99.999", set())),
    ],
)
def test_a_good_default_gives_way_to_what_is_clearly_better_a_poor_one_to_the_best(decibels, expected):
    assert choose(**decibels) == expected


def test_the_image_in_the_middle_has_a_say():
    figures = {"mse": Figures(10.0, 12.0), "minmax": Figures(10.6, 10.0)}
    others = dict.fromkeys(("percentile:99.999", "weighted_mse"), Figures(0.0, 0.0))
    assert best_method((figures | others).__getitem__)[0] == "mse"
    assert best_method((figures | others | {"minmax": Figures(10.6, 11.0)}).__getitem__)[0] == "minmax"
