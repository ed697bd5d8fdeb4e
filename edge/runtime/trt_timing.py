"""Time an engine alone on the device, without copies and without the host's waiting."""

import contextlib
from collections.abc import Callable
from functools import partial

from calib.errors import BackendError
from edge.runtime.device_memory import DeviceMemory, Graph, Stream


def device_times_ms(
    memory: DeviceMemory, stream: Stream, work: Callable[[], None], runs: int, *, as_graph: bool
) -> tuple[float, ...]:
    """Milliseconds between two CUDA events around each of `runs` runs of what `work` enqueues on the stream.

    The device is current, and nothing else uses the stream. With `as_graph`, `work` is recorded once and launched as one CUDA
    graph, as in a `TrtRunner` that uses one: else the device also waits for the host between two layers.
    """
    with contextlib.ExitStack() as resources:
        timer = memory.make_timer()
        resources.callback(timer.destroy)
        launch = work
        if as_graph:
            graph = record_graph(memory, stream, work)
            resources.callback(graph.destroy)
            launch = partial(memory.launch, graph, stream)
        resources.callback(stream.synchronize)  # first, so that timer and graph are not in use when they are destroyed
        times = []
        for _ in range(runs):
            timer.start(stream)
            launch()
            timer.stop(stream)
            stream.synchronize()
            times.append(timer.elapsed_ms())
    return tuple(times)


def record_graph(memory: DeviceMemory, stream: Stream, work: Callable[[], None]) -> Graph:
    """Capture what `work` enqueues on the stream as a graph. Raises BackendError; the stream is usable again either way."""
    memory.begin_capture(stream)
    try:
        work()
    except BaseException:
        with contextlib.suppress(BackendError):  # end the capture of the stream; the incomplete graph is dropped
            memory.end_capture(stream).destroy()
        raise
    return memory.end_capture(stream)
