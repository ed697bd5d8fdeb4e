"""Several batches at once on threads of this process, their results in order.

ONNX Runtime computes outside the interpreter's lock. Two runs on one thread each keep two cores busier than one run on two
threads, whose parts wait for each other at every operator; and whoever uses a result does so while the next one is computed.
"""

from __future__ import annotations

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
        function: may be called by several threads at the same time if `at_once` is more than 1.
        items: taken by the calling thread, few ahead of their turn.
        at_once: calls under way, or done and not yet taken; 1 makes them in the calling thread, each when it is asked for.

    What `function` raises is raised in its turn; calls that are under way then are finished, and no other is begun.
    """
    if at_once == 1:
        yield from map(function, items)
        return
    ahead: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                if len(ahead) == at_once:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(function, item))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for call in ahead:
                call.cancel()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_cores() -> tuple[int, int]:
    """(runs at once, threads of each) for the cores that this process may use: a run for each core, MOST_RUNS at most."""
    cores = usable_cores()
    runs = min(cores, MOST_RUNS)
    return runs, cores // runs
