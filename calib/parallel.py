"""Process several batches at once on threads of this process; results come in order.

ONNX Runtime computes outside the interpreter's lock. Two runs on one thread each keep two cores busier than one run on two
threads, whose parts wait for each other at every operator; and the caller uses a result while the next one is computed.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MOST_RUNS = 4
"""Runs at once: each holds its batch's tensors in memory."""
_T = TypeVar("_T")
_R = TypeVar("_R")


def ordered_map(function: Callable[[_T], _R], items: Iterable[_T], at_once: int) -> Iterator[_R]:
    """`function` of every item, in the order of the items.

    Args:
        function: called by several threads at the same time if `at_once` is more than 1.
        items: consumed by the calling thread, at most `at_once` ahead of the results.
        at_once: calls running, or finished and not yet consumed; 1 makes each call in the calling thread, when its result is
            requested.

    An exception of `function` is raised in its turn; calls that are running then are finished, and no other is started.
    """
    if at_once == 1:
        yield from map(function, items)
        return
    pending: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                if len(pending) == at_once:
                    yield pending.popleft().result()
                pending.append(pool.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for call in pending:
                call.cancel()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_cores() -> tuple[int, int]:
    """(runs at once, threads of each) for the cores that this process may use: one run per core, at most MOST_RUNS."""
    cores = usable_cores()
    runs = min(cores, MOST_RUNS)
    return runs, cores // runs
