"""Oracle: one process that does it all. What may go wrong in a worker, or in the parent, is made to go wrong."""

import hashlib
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from calib.calibration_table import save_table
from calib.collect import CollectConfig, collect, observe
from calib.errors import InputError, MissingError
from calib.qdq_placement import QuantPlan, QuantPoint, plan_quantization
from calib.workers import Work, observe_in_workers


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = spawned(os.getpid())
    yield
    assert multiprocessing.active_children() == []
    assert spawned(os.getpid()) == before


def spawned(pid):
    """Worker processes below a process, from /proc: multiprocessing's own bookkeeping is not asked."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == pid and b"spawn_main" in command:
            found.add(folder.name)
    return found


def digest(table, folder):
    save_table(folder / "calibration.json", table)
    return hashlib.sha256((folder / "calibration.json").read_bytes()).hexdigest()


def test_workers_and_the_order_of_batches_do_not_change_a_byte(tiny, tiny_path, images, tmp_path):
    plan, batches = plan_quantization(tiny), np.split(images, [3, 10, 31, 40])
    digests = set()
    for workers, order in ((1, (0, 1, 2, 3, 4)), (1, (3, 1, 4, 0, 2)), (2, (4, 2, 0, 1, 3)), (7, (1, 0, 2, 4, 3))):
        table = collect(
            tiny_path, (batches[i] for i in order), plan, data_sha256="d", config=CollectConfig("mse", workers=workers)
        )
        assert table.images == 64
        assert table.range_shift is not None
        digests.add(digest(table, tmp_path))
    assert len(digests) == 1
    other = collect(tiny_path, [*batches[:4], 2 * batches[4]], plan, data_sha256="d", config=CollectConfig("mse"))
    assert digest(other, tmp_path) not in digests, "another image is noticed"


def test_histograms_and_progress_are_those_of_one_process(tiny, tiny_path, images):
    plan, told = plan_quantization(tiny), []
    found, count, sha256 = observe(tiny_path, np.split(images, 8), plan, workers=2, progress=told.append)
    expected, _, _ = observe(tiny_path, np.split(images, 8), plan)
    assert (count, sha256) == (64, hashlib.sha256(tiny_path.read_bytes()).hexdigest())
    assert tuple(found) == tuple(expected)
    for name, histogram in found.items():
        assert histogram.counts.tobytes() == expected[name].counts.tobytes()
        assert (histogram.exponent, histogram.amax) == (expected[name].exponent, expected[name].amax)
    assert told == sorted(told)
    assert told[-1] == 64


def test_batches_are_taken_no_faster_than_they_are_done(tiny, tiny_path, images):
    """Two batches for either worker and one in the hand: no more, however many there are."""
    taken, ahead, told = 0, [], [0]

    def endless():
        nonlocal taken
        for _ in range(40):
            taken += 1
            ahead.append(taken - told[-1] // 64)
            yield images

    observe(tiny_path, endless(), plan_quantization(tiny), workers=2, progress=told.append)
    assert taken == 40
    assert max(ahead) <= 5


def bad_graph(tiny, folder):
    for tensor in tiny.graph.initializer:
        if tensor.name == "w_v":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((8, 8), np.inf, np.float32), "w_v"))
    onnx.save(tiny, folder / "bad.onnx")
    return folder / "bad.onnx"


def test_an_error_in_a_worker_is_the_error_of_one_process(tiny, tiny_path, images, tmp_path):
    bad, plan = bad_graph(tiny, tmp_path), plan_quantization(tiny)
    foreign = QuantPlan((QuantPoint("n", 0, "elsewhere", "activation"),), ())
    for path, shown, chosen in ((bad, images, plan), (tiny_path, images[:, :2], plan), (tiny_path, images, foreign)):
        texts = []
        for workers in (1, 2):
            with pytest.raises(InputError) as caught:
                observe(path, [shown], chosen, workers=workers)
            texts.append(str(caught.value))
        assert texts[0] == texts[1]


def test_bad_images_are_refused_before_they_are_sent(tiny, tiny_path, images):
    images[40, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="batch after image 32"):
        observe(tiny_path, np.split(images, 2), plan_quantization(tiny), workers=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_of_the_batches_ends_the_workers(tiny, tiny_path, images, error):
    def batches():
        yield images
        raise error

    with pytest.raises(error):
        observe(tiny_path, batches(), plan_quantization(tiny), workers=2)


@pytest.mark.parametrize("when", ["at a batch", "before the last one ends"])
def test_a_worker_that_is_killed_is_said_so_with_what_to_do(tiny, tiny_path, images, when):
    def batches():
        yield images
        if when == "at a batch":
            kill()
        yield images
        yield images
        kill()

    def kill():
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(MissingError, match=r"worker died[\s\S]*of 2[\s\S]*SIGKILL[\s\S]*next: [\s\S]*fewer workers"):
        observe(tiny_path, batches(), plan_quantization(tiny), workers=2)


class Unreadable:
    """Arrives as 1 / 0."""

    def __reduce__(self):
        return operator.truediv, (1, 0)


def test_what_no_one_foresaw_arrives_with_the_workers_traceback(tiny, tiny_path, images):
    work = Work(tiny_path, hashlib.sha256(tiny_path.read_bytes()).hexdigest(), plan_quantization(tiny).activations, 1)
    with pytest.raises(RuntimeError, match=r"in a calibration worker[\s\S]*Traceback[\s\S]*ZeroDivisionError"):
        observe_in_workers(work, [images, Unreadable(), *[np.concatenate([images] * 20)] * 5], workers=1)


def test_a_graph_that_changes_meanwhile_is_refused(tiny, tiny_path, images):
    work = Work(tiny_path, "0" * 64, plan_quantization(tiny).activations, 1)
    with pytest.raises(InputError, match="changed while it was calibrated"):
        observe_in_workers(work, [images], workers=1)


SCRIPT = textwrap.dedent("""
    import signal
    import sys
    from itertools import repeat
    from pathlib import Path
    import numpy as np
    from calib.collect import observe
    from calib.graph import load_graph
    from calib.qdq_placement import plan_quantization

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with it ignored

    def run():
        images, path = np.ones((8, 3, 8, 8), np.float32), Path(sys.argv[1])
        plan = plan_quantization(load_graph(path)[0])
        observe(path, repeat(images), plan, workers=2, progress=lambda done: print(done, flush=True))

    GUARD
""")


def script(folder, guard):
    path = folder / "calibrate_it.py"
    path.write_text(SCRIPT.replace("GUARD", guard))
    return path


def test_ctrl_c_in_the_terminal_ends_everything_without_a_word_from_the_workers(tiny_path, tmp_path):
    path = script(tmp_path, "if __name__ == '__main__':\n    run()")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, str(path), str(tiny_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        process.stdout.readline()  # one worker is at work, the other may still be importing
        workers = spawned(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to every process of the group
        stderr = process.communicate(timeout=60)[1]
    assert len(workers) == 2
    assert stderr.count("Traceback") == 1, stderr
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_script_without_the_guard_is_told_of_it(tiny_path, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(script(tmp_path, "run()")), str(tiny_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert "worker died" in done.stderr
    assert "needs `if __name__ == '__main__':`" in done.stderr
