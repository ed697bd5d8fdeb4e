"""edge.runtime.trt_runner on a fake device and a fake TensorRT that compute something, late and in the order of the stream.

The oracle is the formula that the fake engine stands for, written out once more in integers. The fakes are strict: work put on
a stream runs when the stream is synchronized and not before, copies read their source then, memory holds NaN until it is
written, a freed address, a destroyed stream, a graph of a changed context and a call outside `current()` are faults. That
they are strict is tested too.
"""

import numpy as np
import pytest
from for_all import for_all
from trt_runner_fakes import CLASSES, ELEMENTS, SIZE, calls, draw, expected, plan, same

from calib.errors import InputError
from edge.runtime import trt_runner
from edge.runtime.trt_io import split
from edge.runtime.trt_runner import TrtRunner


def test_logits_are_those_of_the_images(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        assert (runner.image_shape, runner.batches) == ((3, SIZE, SIZE), (1, 2, 4))
        for seed, count in enumerate([1, 2, 3, 4, 4, 4, 2, 2, 2, 1, 3, 11]):
            images = draw(count, seed)
            assert same(runner(images), images)


def test_the_comparison_sees_damage():
    images = draw(3)
    right = expected(images).astype(np.float32)
    assert same((right,), images)
    one_bad = right.copy()
    one_bad[2, 4] += 1
    for wrong in (
        2 * right,
        right / 2,
        0 * right,
        -right,
        right[::-1],
        right[:2],
        one_bad,
        right.astype(np.float64),
        right * np.nan,
    ):
        assert not same((wrong,), images)


def test_an_answer_is_the_callers_own(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        first, second = draw(4, 1), draw(4, 2)
        kept = runner(first)
        assert same(runner(second), second)
        assert same(kept, first)
        assert kept[0].flags.owndata
        kept[0][:] = 0
        assert same(runner(second), second)


def test_images_may_lie_anyhow_in_memory(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        images = np.asfortranarray(draw(8))[::-2]
        assert not images.flags.c_contiguous
        assert same(runner(images), images)
        frozen = draw(2)
        frozen.flags.writeable = False
        assert same(runner(frozen), frozen)


def test_the_calls_of_one_batch(library, memory):
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        start = len(memory.calls)
        runner(draw(2))
        assert calls(memory, start) == [
            *("set_input_shape", "get_tensor_shape"),
            *("to_device", "execute", "execute_async_v3", "to_host", "synchronize"),
        ]
        start = len(memory.calls)
        runner(draw(2))
        assert calls(memory, start) == ["to_device", "execute", "execute_async_v3", "to_host", "synchronize"]


def test_one_context_one_stream_two_buffers(library, memory):
    runner = TrtRunner("trt", plan(), memory)
    assert memory.live == {"stream": 1, "buffer": 2, "graph": 0}
    assert len(library.contexts) == 1
    assert {len(b) for b in memory.bytes_at.values()} == {4 * 4 * ELEMENTS, 4 * 4 * CLASSES}, "the largest batch"
    (context,) = library.contexts
    assert context().active_optimization_profile == 0
    runner.close()


def test_another_profile_is_left(library, memory):
    library.first_profile = 1
    with TrtRunner("trt", plan(), memory) as runner:
        images = draw(3)
        assert same(runner(images), images)
        assert library.contexts[0]().active_optimization_profile == 0


def test_shared_memory_is_not_copied(library, memory):
    memory.mapped = True
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(5):
            images = draw(3, seed)
            assert same(runner(images), images)
    assert not {"to_device", "to_host"} & set(memory.calls)


def test_an_engine_of_one_shape(library, memory):
    with TrtRunner("trt", plan((3, 3, 3)), memory) as runner:
        assert same(runner(draw(9)), draw(9))
        with pytest.raises(InputError, match=r"found: 4\n  allowed: 3 to 3 images"):
            runner(draw(4))


@pytest.mark.parametrize("allowed", [False, True])
def test_an_engine_that_carries_its_runtime(library, memory, allowed):
    with TrtRunner("trt", plan(), memory, version_compatible=allowed) as runner:
        assert library.runtime().engine_host_code_allowed is allowed
        assert same(runner(draw(1)), draw(1))


def test_the_first_device_is_opened_when_none_is_given(library, memory, monkeypatch):
    monkeypatch.setattr(trt_runner, "open_device", lambda: memory)
    with TrtRunner("trt", plan()) as runner:
        assert same(runner(draw(1)), draw(1))


@for_all(smallest=range(1, 7), largest=range(1, 7))
def test_images_are_split_into_as_few_batches_as_can_be(smallest, largest):
    if smallest > largest:
        return
    for images in range(1, 40):
        counts = [k for k in range(1, 41) if k * smallest <= images <= k * largest]  # k batches can hold them
        if not counts:
            with pytest.raises(InputError, match=f"found: {images}\n  allowed: {smallest} to {largest} images"):
                split(images, smallest, largest)
            continue
        sizes = split(images, smallest, largest)
        assert (sum(sizes), len(sizes)) == (images, min(counts))
        assert smallest <= min(sizes) <= max(sizes) <= largest
        assert sizes == sorted(sizes, reverse=True)


def test_more_images_than_the_largest_batch(library, memory):
    with TrtRunner("trt", plan((2, 3, 4)), memory, graphs=False) as runner:
        start = len(memory.calls)
        assert same(runner(draw(9)), draw(9))
        assert calls(memory, start).count("execute") == 3
        assert split(9, 2, 4) == [4, 3, 2]
        with pytest.raises(InputError, match=r"add up to this number of images\n  found: 1\n  allowed: 2 to 4 images"):
            runner(draw(1))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[1.0]], "found: list"),
        (draw(1).astype(np.float64), "found: float64"),
        (draw(1).astype(np.uint8), "found: uint8"),
        (draw(1).astype(">f4"), "found: >f4"),
        (draw(1)[0], r"found: \(3, 4, 4\)\n  allowed: \(B, 3, 4, 4\), B > 0"),
        (draw(1)[:, :2], r"found: \(1, 2, 4, 4\)"),
        (draw(1).transpose(0, 2, 3, 1), r"found: \(1, 4, 4, 3\)"),
        (draw(1)[:0], r"found: \(0, 3, 4, 4\)"),
    ],
)
def test_wrong_images_are_refused_before_anything_is_done(library, memory, images, words):
    with TrtRunner("trt", plan(), memory) as runner:
        start = len(memory.calls)
        with pytest.raises(InputError, match=words):
            runner(images)
        assert calls(memory, start) == []
        assert same(runner(draw(2)), draw(2))
