"""What a person sees: a view, lines, a summary."""

import io

import pytest
from camera_fakes import FakeClock, picture, result
from rich.console import Console

from edge.camera.latency_stats import Percentiles
from edge.camera.loop import Summary
from edge.camera.sinks.terminal import PLAIN_INTERVAL_S, LiveView, PlainLines, print_summary


def screen(renderable):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def view():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    view = LiveView(console, "ufovit_t int8 [on] this", lambda: [("audit", "9 of 9"), ("page", "[here]")])
    yield view
    view.close()


def test_the_view_waits_and_then_shows_the_newest(view):
    assert "waiting for the first frame" in screen(view.render())
    view(result(picture(size=(48, 64)), 6))
    text = screen(view.render())
    assert "ufovit_t int8 [on] this" in text  # as it is, no markup
    assert "middle" in text
    assert "84.4%" in text  # e^3 / (1 + e^3 + e)
    assert text.index("middle") < text.index("bottom")
    assert "25.0 results/s, 7 results, 4 frames dropped, picture 64x48" in text
    row = next(line for line in text.splitlines() if "age of the answer" in line)
    assert row.count("6.50") == 4
    assert "page: [here]" in text


def test_bars_are_as_long_as_their_shares(view):
    view(result(picture(), logits=(50.0, 0.0, 0.0)))
    lines = screen(view.render()).splitlines()
    assert next(line for line in lines if "top" in line).count("█") == 24
    assert next(line for line in lines if "middle" in line).count("█") == 0


def test_a_line_every_two_seconds():
    clock, said = FakeClock(), []
    lines = PlainLines(said.append, lambda: [("audit", "9 of 9")], clock)
    for number in range(50):
        lines.process(result(picture(), number))
        clock.advance(0.1)
    assert len(said) == 3
    assert PLAIN_INTERVAL_S == 2.0
    assert said[1].startswith("middle 84.4%, bottom 11.4% | 25.0 results/s, 21 results")
    assert said[1].endswith("age 6.5 ms | audit: 9 of 9")


def test_the_summary_says_what_happened_and_only_that():
    figures = {"age_ms": Percentiles(1.0, 2.0, 3.0, 4.0)}
    fine = Summary("interrupted", 2.0, 60, 20, 39, 0, 0, 0, 0, 10.0, figures)
    console = Console(file=io.StringIO(), width=100, color_system=None)
    print_summary(console, fine, [("audit", "[all] agree")])
    text = console.file.getvalue()
    for part in ("interrupted", "20 in 2.0 s, 10.0 per second", "60 from the source, 39 dropped", "[all] agree", "3.00"):
        assert part in text
    assert "lost" not in text
    assert "NaN" not in text
    troubled = Summary("the source failed", 2.0, 60, 0, 39, 7, 3, 2, 1, 0.0, {}, ValueError("x"))
    console = Console(file=io.StringIO(), width=100, color_system=None)
    print_summary(console, troubled, [])
    text = console.file.getvalue()
    for part in ("7 unusable", "lost 2 times, back 1 times", "3 frames output NaN"):
        assert part in text
