"""Calls on several threads, results in order. The oracle is a plain loop; barriers show what is under way at the same time."""

import threading
import time

import pytest
from for_all import for_all

from calib.parallel import MOST_RUNS, ordered_map, shared_cores


class Counted:
    """Items that count how many were taken."""

    def __init__(self, items):
        self.items, self.taken = iter(items), 0

    def __iter__(self):
        return self

    def __next__(self):
        item = next(self.items)
        self.taken += 1
        return item


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
@for_all(count=[0, 1, 2, 7])
def test_order_is_that_of_the_items_whichever_is_done_first(at_once, count):
    def slow_first(i):
        time.sleep(0.002 * ((count - i) % 3))
        return i * i

    assert list(ordered_map(slow_first, range(count), at_once)) == [i * i for i in range(count)]


@pytest.mark.parametrize("at_once", [2, 3])
def test_at_once_calls_run_at_the_same_time(at_once):
    meeting = threading.Barrier(at_once)  # breaks, and raises, unless all are there within the time
    assert list(ordered_map(lambda i: (meeting.wait(10), i)[1], range(3 * at_once), at_once)) == list(range(3 * at_once))


def test_no_more_calls_run_at_the_same_time():
    lock, now, most = threading.Lock(), [0], [0]

    def call(_i):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.005)
        with lock:
            now[0] -= 1

    list(ordered_map(call, range(12), 3))
    assert most == [3]


def test_one_at_once_stays_in_the_calling_thread_and_is_lazy():
    items, seen = Counted(range(5)), []
    results = ordered_map(lambda i: seen.append(threading.get_ident()) or i, items, 1)
    assert (next(results), next(results), items.taken) == (0, 1, 2)
    assert set(seen) == {threading.get_ident()}


def test_items_are_taken_in_the_calling_thread_few_ahead():
    threads = []

    def items():
        for i in range(20):
            threads.append(threading.get_ident())
            yield i

    results = ordered_map(lambda i: i, items(), 2)
    for turn in range(20):
        assert next(results) == turn
        assert len(threads) <= turn + 3
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_what_a_call_raises_comes_in_its_turn_and_no_other_is_begun(at_once):
    begun = []

    def call(i):
        begun.append(i)
        if i == 3:
            raise ValueError("the third")
        return i

    taken = []
    with pytest.raises(ValueError, match="the third"):
        taken.extend(ordered_map(call, range(100), at_once))
    results = ordered_map(call, range(100), at_once)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert max(begun) <= 3 + at_once


def test_what_the_items_raise_is_raised():
    def items():
        yield 1
        raise KeyError("no such image")

    with pytest.raises(KeyError, match="no such image"):
        list(ordered_map(lambda i: i, items(), 2))


def test_no_thread_is_left_when_the_results_are_dropped():
    before = threading.active_count()
    results = ordered_map(lambda i: i, range(100), 4)
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("cores", "shared"), [(1, (1, 1)), (2, (2, 1)), (4, (4, 1)), (6, (4, 1)), (64, (4, 16))])
def test_cores_are_shared_out(monkeypatch, cores, shared):
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)))
    assert shared_cores() == shared
    assert shared[0] <= MOST_RUNS


@pytest.mark.parametrize(("cores", "shared"), [(None, (1, 1)), (8, (4, 2))])
def test_without_affinity_all_cores_count(monkeypatch, cores, shared):
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert shared_cores() == shared
