"""What viewers get of the results. Oracle: counts by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import numpy as np
import pytest
from page_results import IDENTITY, LABELS, LAYOUT, result

from edge.camera.web import broadcast as module
from edge.camera.web.broadcast import BOUNDARY, Broadcast, event
from edge.tasks.classification import Classification
from edge.tasks.classification.top_k import ALL_CLASSES


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def encode(pixels: np.ndarray) -> bytes:
    return b"jpeg of %d" % pixels[0, 0, 0]


def make_broadcast(clock: Clock, notes: Callable[[], dict[str, str]] = dict) -> Broadcast:
    return Broadcast(IDENTITY, LAYOUT, encode, clock, notes)


async def events(stream: AsyncIterator[bytes], count: int) -> list[tuple[str, dict]]:
    """The next events of a stream of figures, as a browser reads them."""
    found: list[tuple[str, dict]] = []
    while len(found) < count:
        for block in (await asyncio.wait_for(anext(stream), 5)).decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines())
            if "event" in fields:
                found.append((fields["event"], json.loads(fields["data"])))
    return found


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_hundred_viewers_cost_one_encoding_of_each_picture() -> None:
    async def look() -> None:
        feed = make_broadcast(Clock())
        got: list[list[bytes]] = [[] for _ in range(100)]

        async def viewer(mine: list[bytes]) -> None:
            with feed.viewer("picture"):
                mine.extend([part async for part in feed.pictures()])

        tasks = [asyncio.create_task(viewer(mine)) for mine in got]
        await settle()
        for number in range(7):
            feed.publish(result(number))
            feed._update()
            feed._tick.set()
            feed._tick.clear()
            await settle()
        feed.end()
        await asyncio.gather(*tasks)
        assert feed.encoded == 7
        assert all(mine == got[0] and len(mine) == 8 for mine in got)
        assert all(mine[3] is got[0][3] for mine in got), "the very same bytes"
        assert b"jpeg of 2" in got[0][3] and got[0][3].endswith(BOUNDARY)  # noqa: PT018  # one statement about one part

    asyncio.run(look())


def test_nobody_looks_and_nothing_is_encoded() -> None:
    feed = make_broadcast(Clock())
    for number in range(20):
        feed.publish(result(number))
        feed._update()
    assert feed.encoded == 0


def test_a_slow_viewer_gets_the_newest_and_what_it_missed_is_gone() -> None:
    async def look() -> None:
        feed = make_broadcast(Clock())
        with feed.viewer("picture"):
            parts = feed.pictures()
            assert await anext(parts) == BOUNDARY
            for number in range(50):
                feed.publish(result(number))
                feed._update()
            assert b"jpeg of 49" in await anext(parts)
            assert feed._picture is not None and feed._picture[0] == 49  # noqa: PT018  # narrowing

    asyncio.run(look())


def test_a_result_that_was_sent_is_not_sent_again() -> None:
    async def look() -> None:
        feed = make_broadcast(Clock())
        with feed.viewer("picture"), feed.viewer("figures"):
            feed.publish(result(3))
            feed._update()
            parts, figures = feed.pictures(), feed.figures()
            assert await anext(parts) == BOUNDARY
            assert b"jpeg of 3" in await anext(parts)
            assert [name for name, _ in await events(figures, 3)] == ["about", "history", "result"]
            feed._update()
            for stream in (parts, figures):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.05)
            assert feed.encoded == 1

    asyncio.run(look())


def test_a_viewer_who_comes_later_gets_each_row_once() -> None:
    async def look() -> None:
        clock = Clock()
        feed = make_broadcast(clock)
        with feed.viewer("figures"):
            for _ in range(3):
                clock.now += 1.0
                feed._update()
            figures = feed.figures()
            (_, history) = await events(figures, 2)
            clock.now += 1.0
            feed._update()
            (second,) = await events(figures, 1)
            assert [row[0] for row in history[1]] == [1, 2, 3]
            assert second[1]["row"][0] == 4
            late = feed.figures()
            await events(late, 2)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(late), 0.05)

    asyncio.run(look())


def test_the_figures_say_what_the_result_says() -> None:
    async def look() -> None:
        clock = Clock()
        feed = make_broadcast(clock, lambda: {"audit": "99 of 100 agree"})
        with feed.viewer("figures"):
            figures = feed.figures()
            (about, history) = await events(figures, 2)
            assert about[1]["identity"] == [list(row) for row in IDENTITY.items()]
            assert (about[1]["caption"], about[1]["longest"], about[1]["bars"]) == ("confidence", len("washer"), len(LABELS))
            assert about[1]["notes"] == [["audit", "99 of 100 agree"]]
            assert about[1]["quiet_s"] is None
            assert history == ("history", [])
            feed.publish(result(5, winner=1))
            clock.now += 1.0
            feed._update()
            told = dict(await events(figures, 2))
            assert (told["result"]["title"], told["result"]["figure"]) == ("nut", "90 %")
            assert told["result"]["bars"] == [["bolt", 0.05, "5 %"], ["nut", 0.9, "90 %"], ["washer", 0.05, "5 %"]]
            assert told["result"]["leader"] == 1
            assert (told["result"]["number"], told["result"]["frame"], told["result"]["dropped"]) == (5, 10, 5)
            assert told["second"]["row"] == [1, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 0.5, 0.5, 20.0, 20.0]

    asyncio.run(look())


def test_many_classes_show_the_top_only() -> None:
    task = Classification(tuple(f"c{n}" for n in range(ALL_CLASSES + 1)))
    feed = Broadcast({}, task.panel_layout(), encode, Clock())
    assert feed._about()["bars"] == 0
    logits = np.zeros((1, ALL_CLASSES + 1), np.float32)
    logits[0, 12], logits[0, 3] = 5, 4
    given = result(0)
    figures = feed._figures(type(given)(**{**vars(given), "answer": task.answer((logits,), 2)}))
    assert [name for name, *_ in figures["bars"]] == ["c12", "c3"]
    assert (figures["title"], figures["leader"]) == ("c12", 0)


@pytest.mark.parametrize(
    ("quiet_s", "fps", "stale"), [(1.9, 30.0, False), (2.1, 30.0, True), (5.0, 0.5, False), (6.1, 0.5, True)]
)
def test_without_results_the_picture_becomes_stale(quiet_s: float, fps: float, stale: bool) -> None:
    clock = Clock()
    feed = make_broadcast(clock)
    given = result(0)
    feed.publish(type(given)(**{**vars(given), "fps": fps}))
    clock.now += quiet_s
    assert feed._state()["stale"] is stale
    assert feed._state()["quiet_s"] == pytest.approx(quiet_s)


def test_values_that_are_no_numbers_reach_the_page_as_null() -> None:
    given = result(0)
    answer = replace(given.answer, probabilities=np.full(3, np.nan, np.float32))
    broken = type(given)(**{**vars(given), "answer": answer, "fps": float("inf")})
    figures = make_broadcast(Clock())._figures(broken)
    assert [share for _, share, _ in figures["bars"]] == [None, None, None] and figures["fps"] is None  # noqa: PT018  # one statement
    assert json.loads(event("x", figures).split(b"data: ")[1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        event("x", float("nan"))


def test_a_label_cannot_break_out_of_its_event() -> None:
    written = event("x", ["a\n\nevent: end\ndata: {}", "</script>"])
    assert written.count(b"\n") == 3
    shown = json.loads(event("x", {"a": ("b\u202e\x1b\ud800", 1.5, None)}).partition(b"data: ")[2])
    assert shown == {"a": [r"b\u202e\x1b\ud800", 1.5, None]}


def test_a_picture_that_cannot_be_drawn_is_told_and_the_figures_go_on() -> None:
    def refuse(_pixels: np.ndarray) -> bytes:
        raise ValueError("no such\npicture")

    clock = Clock()
    feed = Broadcast(IDENTITY, LAYOUT, refuse, clock)
    with feed.viewer("picture"), feed.viewer("figures"):
        feed.publish(result(0))
        feed._update()
        assert feed._notes() == {"picture": "cannot be encoded: no such picture"}
        assert feed._answer is not None
        feed._encode = encode
        feed.publish(result(1))
        feed._update()
        assert feed._notes() == {}


def test_notes_that_fail_do_not_end_the_page() -> None:
    def fail() -> dict[str, str]:
        raise RuntimeError("audit died")

    assert make_broadcast(Clock(), fail)._notes() == {"notes": "not available: audit died"}


@pytest.mark.parametrize(("viewers", "interval_s"), [(0, 1 / 12), (1, 1 / 12), (20, 40 / module.SENDS_PER_S), (10_000, 0.5)])
def test_the_more_look_the_fewer_moments_there_are(viewers: int, interval_s: float) -> None:
    feed = make_broadcast(Clock())
    feed._viewers = {"picture": viewers, "figures": viewers}
    assert feed._interval_s() == pytest.approx(interval_s)


def test_moments_come_at_their_rate_however_fast_results_are() -> None:
    async def look() -> None:
        feed = make_broadcast(Clock())
        running = asyncio.create_task(feed.run())
        with feed.viewer("picture"):
            for number in range(300):
                feed.publish(result(number))
                await asyncio.sleep(0.003)
        feed.end()
        await asyncio.wait_for(running, 2)
        assert 3 <= feed.encoded <= 0.003 * 300 * 12 * 4, "far fewer than results, whatever else this machine does"

    asyncio.run(look())
