"""One test over a grid of values: seeds, lengths, axes. A property that fails lists the failing values."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def for_all(**grid: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test for every combination of the values of `grid`; fails with all combinations that fail.

    Fixtures are made once for all of them: for what changes a fixture, use `pytest.mark.parametrize`.
    """
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    assert combinations, "a test of nothing"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def over_the_grid(**fixtures: Any) -> None:
            failures: list[tuple[str, BaseException]] = []
            for combination in combinations:
                try:
                    test(**fixtures, **combination)
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # whatever a test may end with
                    failures.append((", ".join(f"{name}={value}" for name, value in combination.items()), error))
            if failures:
                said = "\n".join(f"{values}: {type(error).__name__}: {error}" for values, error in failures)
                raise AssertionError(f"{len(failures)} of {len(combinations)} fail\n{said}") from failures[0][1]

        parameters = inspect.signature(test).parameters
        unknown = grid.keys() - parameters
        assert not unknown, f"the test takes no {sorted(unknown)}"
        kept = [parameter for name, parameter in parameters.items() if name not in grid]
        over_the_grid.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]  # what pytest reads
        return over_the_grid

    return decorate
