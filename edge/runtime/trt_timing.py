"""How long an engine alone takes on the device: without the copies, and without the host's waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from calib.errors import BackendError
from edge.runtime.device_memory import DeviceMemory, Graph, Stream


def device_times_ms(
    memory: DeviceMemory, stream: Stream, work: Callable[[], None], runs: int, *, as_graph: bool
) -> tuple[float, ...]:
    """Milliseconds between two CUDA events around each of `runs` runs of what `work` puts on the stream.

    The device is current, and nothing else uses the stream. With `as_graph`, `work` is recorded once and launched as one CUDA
    graph, as in a `TrtRunner` that uses one: else the device also waits for the host between two layers.
    """
    with contextlib.ExitStack() as made:
        timer = memory.make_timer()
        made.callback(timer.destroy)
        launch = work
        if as_graph:
            graph = record_graph(memory, stream, work)
            made.callback(graph.destroy)
            launch = _launcher(memory, graph, stream)
        made.callback(stream.synchronize)  # first, whatever happens: events and graph are not in use when they are destroyed
        times = []
        for _ in range(runs):
            timer.start(stream)
            launch()
            timer.stop(stream)
            stream.synchronize()
            times.append(timer.elapsed_ms())
    return tuple(times)


def _launcher(memory: DeviceMemory, graph: Graph, stream: Stream) -> Callable[[], None]:
    return lambda: memory.launch(graph, stream)


def record_graph(memory: DeviceMemory, stream: Stream, work: Callable[[], None]) -> Graph:
    """What `work` puts on the stream, as a graph. Raises BackendError; the stream is usable again either way."""
    memory.begin_capture(stream)
    try:
        work()
    except BaseException:
        with contextlib.suppress(BackendError):  # the stream has to leave the capture; what is recorded is of no use
            memory.end_capture(stream).destroy()
        raise
    return memory.end_capture(stream)
