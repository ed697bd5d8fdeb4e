#!/usr/bin/env python3
"""Measure the cost of web page viewers: results per second without viewers and with twenty that read pictures and figures.

    scripts/install.sh build camera
    scripts/build_engine.sh ufovit_t int8 --target cpu
    python scripts/bench/viewers.py --build build/ufovit_t-int8-cpu

One thread preprocesses moving pictures of 640 x 480, runs the network at full speed and passes every result to the page. Blocks
with and without viewers alternate (A B, B A, ...), so that other load affects both alike; the result is the ratio of the
medians with its interval (`edge.bench.compare_builds`). The viewers are a second process on the same machine, which uses CPU
time too: in production they are other machines.

On a busy machine a thread often waits for a core, which affects blocks at random. Linux counts that waiting (`schedstat`), so
the ratio is also given without it: time on a core plus time asleep, where this thread sleeps only to wait for the GIL. The CPU
share of the page's thread is printed as well.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from edge.camera.web.dashboard import Dashboard
    from edge.runtime.open_build import OpenedBuild

# The matrix products of the preprocessing are small: a second OpenBLAS thread gains nothing and waits for a busy core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SETTLE_S = 0.7
PICTURES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of web page viewers.")
    parser.add_argument("--build", type=Path, help="a build folder")
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runner")
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a block")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of blocks")
    parser.add_argument("--look", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.look is not None:
        look(args.look, args.viewers)
    elif args.build is None:
        parser.error("--build FOLDER is required")
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Run alternating blocks and print the comparison."""
    import numpy as np

    from edge.bench.compare_builds import median_ratio
    from edge.camera.web.dashboard import Dashboard
    from edge.runtime.open_build import open_runner
    from edge.tasks.registry import task_of
    from engines.build_folder.folder import BuildFolder

    opened = open_runner(BuildFolder(args.build), args.runner, threads=args.threads)
    page = Dashboard({"model": opened.manifest.model}, task_of(opened.manifest).panel_layout(), port=0)
    port = urlsplit(page.start()).port
    assert port is not None
    loop = _Loop(opened, page)
    alone: list[_Block] = []
    watched: list[_Block] = []
    try:
        for number in range(args.rounds):
            for viewers in (0, args.viewers) if number % 2 == 0 else (args.viewers, 0):
                (watched if viewers else alone).append(_block(loop, port, viewers, args.seconds))
            print(f"{number + 1}: {1e3 / alone[-1].wall_ms:.1f} and {1e3 / watched[-1].wall_ms:.1f} results/s", file=sys.stderr)
    finally:
        loop.end()
        page.close()
        opened.runner.close()
    with_viewers = f"with {args.viewers} viewers"
    print(f"{opened.ran_on}; {args.threads} thread(s) of the runner; {args.rounds} pairs of blocks of {args.seconds:g} s")
    for name, what in (("wall_ms", "wall time"), ("own_ms", "without waiting for a core")):
        times = [np.array([getattr(block, name) for block in blocks]) for blocks in (alone, watched)]
        ratio = median_ratio(*times)  # time alone / time watched = rate watched / rate alone
        rates = [1e3 / float(np.median(each)) for each in times]
        print(f"{what}: {rates[0]:.1f} results/s without viewers, {rates[1]:.1f} {with_viewers}, ", end="")
        print(f"ratio {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], {100 * ratio.level:g} % interval")
    for name, what in (
        ("page_share", "the page's thread, % of a core"),
        ("lock_share", "waiting for the GIL, % of the time"),
    ):
        shares = [100 * float(np.median([getattr(block, name) for block in blocks])) for blocks in (alone, watched)]
        print(f"{what}: {shares[0]:.1f} without viewers, {shares[1]:.1f} {with_viewers}")
    received = [float(np.median([getattr(block, name) for block in watched])) for name in ("pictures", "answers")]
    print(f"a viewer received {received[0]:.1f} pictures/s and {received[1]:.1f} predictions/s")


@dataclass(frozen=True)
class _Block:
    """One block: ms per result, in total and without waiting for a core; shares of the time; rates of a viewer's streams."""

    wall_ms: float
    own_ms: float
    page_share: float
    lock_share: float
    pictures: float = 0.0
    answers: float = 0.0


class _Loop:
    """Runs inference continuously in its own thread and counts the results."""

    def __init__(self, opened: OpenedBuild, page: Dashboard) -> None:
        self.count = 0
        self._opened, self._page = opened, page
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.schedstat = Path(f"/proc/self/task/{self._thread.native_id}/schedstat")

    def _run(self) -> None:
        import numpy as np

        from edge.camera.frame import Frame, Latency, Result
        from edge.tasks.registry import task_of

        opened, clock, task = self._opened, time.monotonic, task_of(self._opened.manifest)
        blocks = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        whole = np.kron(blocks, np.ones((40, 40, 1), np.uint8))
        pictures = [np.roll(whole, 20 * shift, axis=1) for shift in range(PICTURES)]
        while not self._end.is_set():
            frame = Frame(pictures[self.count % PICTURES], self.count, clock(), 0.0)
            tensor = opened.preprocess(frame.pixels)[None]
            prepared = clock()
            outputs = opened.runner(tensor)
            inferred = clock()
            answer = task.answer(outputs, 5)
            done = clock()
            ms = [1e3 * (late - early) for early, late in ((frame.taken_s, prepared), (prepared, inferred), (inferred, done))]
            latency = Latency(0.0, ms[0], ms[1], ms[2], age_ms=1e3 * (done - frame.taken_s))
            self._page(Result(frame, outputs, answer, latency, self.count, 0, 0.0))
            self.count += 1

    def end(self) -> None:
        self._end.set()
        self._thread.join()


def _block(loop: _Loop, port: int, viewers: int, seconds: float) -> _Block:
    """Measure one block."""
    watching = None
    if viewers:
        command = [sys.executable, __file__, "--look", str(port), "--viewers", str(viewers)]
        watching = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert watching.stdout is not None
        watching.stdout.readline()  # all are connected
    time.sleep(SETTLE_S)
    thread = next(thread for thread in threading.enumerate() if thread.name == "ufovit-page")
    assert thread.ident is not None
    cpu = time.pthread_getcpuclockid(thread.ident)

    def read() -> tuple[float, ...]:
        on_core_ns, waited_ns = (int(value) for value in loop.schedstat.read_text().split()[:2])
        return time.monotonic(), loop.count, time.clock_gettime(cpu), on_core_ns / 1e9, waited_ns / 1e9

    before = read()
    time.sleep(seconds)
    took, count, page_s, on_core_s, waited_s = (late - early for early, late in zip(before, read(), strict=True))
    pictures, answers, looked_s = 0.0, 0.0, 1.0
    if watching is not None:
        pictures, answers, looked_s = (float(value) for value in watching.communicate("")[0].split())
    asleep_s = max(0.0, took - on_core_s - waited_s)
    each = max(1, viewers) * looked_s
    own_ms, count = 1e3 * (took - waited_s) / max(1, count), max(1, count)
    return _Block(1e3 * took / count, own_ms, page_s / took, asleep_s / took, pictures / each, answers / each)


def look(port: int, viewers: int) -> None:
    """Act as this number of viewers until standard input ends; print pictures, predictions and seconds."""
    selector = selectors.DefaultSelector()
    for path in ["/picture", "/figures"] * viewers:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        selector.register(connection, selectors.EVENT_READ, path)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    print("connected", flush=True)
    pictures = answers = 0
    begun = time.monotonic()
    while True:
        for key, _ in selector.select():
            if key.data is None:
                print(pictures, answers, time.monotonic() - begun)
                return
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(1 << 20)
            pictures += data.count(b"Content-Type: image/jpeg")
            answers += data.count(b"event: result")
            if not data:
                selector.unregister(key.fileobj)


if __name__ == "__main__":
    main()
