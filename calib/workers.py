"""Calibration in several processes: each runs the graph on its share of the batches and counts into its own histograms.

    parent                                    worker, one of N
    batches, one at a time        --array-->  TappedGraph, Halves.update
    next batch to the least busy  <--count--  images done
    no more                       --None--->
    Halves.merge                  <-Halves--  and it ends

A worker has at most two batches, the one that it is at and the next, and the parent one more, so that memory is bounded by the
batch's size, whatever the number of images. Workers are spawned, not forked: ONNX Runtime's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import InputError, MissingError, UfovitError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from numpy.typing import NDArray

    from calib.split_half import Halves

_AHEAD = 2
_GRACE_S = 5.0


@dataclass(frozen=True)
class Work:
    """What every worker does.

    Attributes:
        onnx_path: the float graph.
        onnx_sha256: its digest; another file by now is refused.
        taps: tensors to observe.
        threads: threads of ONNX Runtime, per worker.
    """

    onnx_path: Path
    onnx_sha256: str
    taps: tuple[str, ...]
    threads: int


@dataclass(eq=False)
class _Worker:
    """A worker as the parent sees it: whether its graph is ready, how many batches it got, how many are not done."""

    process: BaseProcess
    link: Connection
    started: bool = False
    given: int = 0
    pending: int = 0

    def send(self, message: Any) -> None:
        """Raises what the worker said before it went, and MissingError when it said nothing."""
        try:
            self.link.send(message)
        except OSError:
            while True:
                self.receive()

    def receive(self) -> Any:
        """The next message. Raises what the worker raised, and MissingError when it is gone."""
        try:
            message = self.link.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(message, Exception):
            raise message
        return message

    def _died(self) -> MissingError:
        self.process.join(_GRACE_S)
        code = self.process.exitcode
        killed = code is not None and code < 0
        return MissingError(
            "a calibration worker died",
            where=self.process.name,
            found=f"killed by {signal.Signals(-code).name}" if killed and code is not None else f"exit status {code}",
            next_command="calibrate with fewer workers or smaller batches: Linux kills processes when memory runs out"
            if killed
            else "calibrate with one worker; a script that starts workers needs `if __name__ == '__main__':`",
        )


class _Team:
    """All workers, and how far they are together."""

    def __init__(self, workers: list[_Worker], progress: Callable[[int], None] | None) -> None:
        self.workers = workers
        self.progress, self.done = progress, 0

    def give(self, batch: NDArray[Any]) -> None:
        """Hand a batch to the least busy worker, as soon as one has room for it."""
        self._hear(timeout_s=0)
        while not (with_room := [w for w in self.workers if w.started and w.pending < _AHEAD]):
            self._hear()
        worker = min(with_room, key=lambda w: w.pending)
        worker.send(batch)
        worker.given += 1
        worker.pending += 1

    def gather(self, halves: Halves) -> None:
        """Wait for the batches that are under way, and merge what all workers have seen."""
        while any(worker.pending for worker in self.workers):
            self._hear()
        used = [worker for worker in self.workers if worker.given]  # the others need not even finish starting
        for worker in used:
            worker.send(None)
        for worker in used:
            halves.merge(worker.receive())

    def _hear(self, timeout_s: float | None = None) -> None:
        """Take a message of every worker that has one; wait for the first."""
        before = self.done
        for link in wait([worker.link for worker in self.workers], timeout_s):
            worker = next(w for w in self.workers if w.link is link)
            self.done += worker.receive()
            worker.pending -= worker.started
            worker.started = True
        if self.progress is not None and self.done > before:
            self.progress(self.done)


def observe_in_workers(
    work: Work, batches: Iterable[NDArray[Any]], *, workers: int, progress: Callable[[int], None] | None = None
) -> Halves:
    """Histograms of all batches.

    Args:
        work: graph and tensors.
        batches: checked arrays as the graph takes them.
        workers: number of processes.
        progress: called with the number of images done so far.

    Raises what a worker raised, and MissingError for a worker that died. No process is left behind, however this ends.
    """
    from calib.split_half import Halves

    halves = Halves(work.taps)
    with _started(work, workers) as running:
        team = _Team(running, progress)
        for batch in batches:
            team.give(batch)
        team.gather(halves)
    return halves


@contextlib.contextmanager
def _started(work: Work, workers: int) -> Iterator[list[_Worker]]:
    """Workers that are starting up; at the end they are gone."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # else the first start does that, and lets interrupts through again
    running: list[_Worker] = []
    try:
        for number in range(1, workers + 1):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_run, args=(theirs, work), name=f"calibration worker {number} of {workers}", daemon=True
            )
            running.append(_Worker(process, ours))
            with _interrupts_held():
                process.start()
            theirs.close()  # so that the worker's end is the only one, and its death the end of the stream
        yield running
    finally:
        for worker in running:
            worker.link.close()
            if worker.process.pid is not None:
                worker.process.terminate()
        for worker in running:
            if worker.process.pid is not None:
                worker.process.join(_GRACE_S)
                worker.process.kill()
                worker.process.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; processes started in it never see it, and their parent ends them."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _run(link: Connection, work: Work) -> None:
    """The worker's process, from beginning to end."""
    batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_ahead, args=(link, batches), daemon=True)
    reader.start()
    with contextlib.suppress(OSError):  # the parent is gone
        try:
            _serve(link, batches, work)
        except UfovitError as error:
            link.send(error)
        except MemoryError:
            link.send(
                MissingError(
                    "a calibration worker ran out of memory", next_command="calibrate with fewer workers or smaller batches"
                )
            )
        except Exception:  # noqa: BLE001  # whatever it is, the parent raises it
            link.send(RuntimeError(f"in a calibration worker:\n{traceback.format_exc()}"))
    reader.join()  # what the parent is sending meanwhile is taken, so that it comes to hear of the error


def _read_ahead(link: Connection, batches: queue.SimpleQueue[Any]) -> None:
    """Take batches as they come, so that the next one is here when the last one is done; after None, or an error, no more."""
    try:
        while (batch := link.recv()) is not None:
            batches.put(batch)
        batches.put(None)
    except Exception as error:  # noqa: BLE001  # memory may run out, the parent may be gone: the worker raises it again
        batches.put(error)


def _serve(link: Connection, batches: queue.SimpleQueue[Any], work: Work) -> None:
    from calib.files import sha256_bytes
    from calib.graph import load_graph
    from calib.ort_session import TappedGraph
    from calib.split_half import Halves

    model, data = load_graph(work.onnx_path)
    if sha256_bytes(data) != work.onnx_sha256:
        raise InputError("the graph changed while it was calibrated", where=work.onnx_path, next_command="calibrate again")
    tapped = TappedGraph(model, work.taps, threads=work.threads, where=work.onnx_path)
    del model, data
    halves = Halves(work.taps)
    link.send(0)
    while (batch := batches.get()) is not None:
        if isinstance(batch, Exception):
            raise batch
        halves.update(batch, tapped(batch))
        link.send(len(batch))
    link.send(halves)
