"""One test over a grid: every combination runs, every failure is named, and what is skipped stays skipped."""

import pytest
from for_all import for_all


def test_every_combination_runs():
    seen = []
    for_all(a=[1, 2], b="xy")(lambda a, b: seen.append((a, b)))()
    assert seen == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_every_failure_is_named_and_the_first_is_the_cause():
    @for_all(a=range(5), b=[0])
    def test(given, a, b):
        if a == 1:
            pytest.fail("one")
        if a == 3:
            raise KeyError("three")
        assert a != 4, "four"

    with pytest.raises(AssertionError, match="3 of 5 fail") as failed:
        test(given=None)
    for words in ("a=1, b=0: Failed: one", "a=3, b=0: KeyError: 'three'", "a=4, b=0: AssertionError: four"):
        assert words in str(failed.value)
    assert isinstance(failed.value.__cause__, pytest.fail.Exception)


@pytest.mark.parametrize("outer", [1, 2])
@for_all(inner=[3, 4])
def test_fixtures_and_parametrize_go_beside_it(tmp_path, outer, inner):
    assert tmp_path.is_dir()
    assert outer in (1, 2)
    assert inner in (3, 4)


def test_a_skip_is_a_skip():
    with pytest.raises(pytest.skip.Exception, match="not at 1"):
        for_all(a=[1])(lambda a: pytest.skip(f"not at {a}"))()


def test_a_grid_of_nothing_and_a_name_that_the_test_does_not_take_are_refused():
    with pytest.raises(AssertionError, match="a test of nothing"):
        for_all(a=[])
    with pytest.raises(AssertionError, match=r"takes no \['b'\]"):
        for_all(b=[1])(lambda a: a)
