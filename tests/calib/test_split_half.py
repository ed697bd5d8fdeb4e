"""Oracle: images sorted by hand into two heaps, a Histogram over each heap, numpy over both."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.histogram import Histogram
from calib.split_half import Halves, half_of

TAPS = ("per image", "windows", "whole")


def tensors_of(batch):
    """One row per image, two rows per image, and a first axis that has nothing to do with the batch."""
    return {
        "per image": 2 * batch,
        "windows": np.repeat(batch, 2, axis=0) * np.tile(np.float32([1, 3]), len(batch))[:, None],
        "whole": batch[:1].sum(axis=0, keepdims=True).repeat(2 * len(batch) + 1, axis=0),
    }


def seen(*batches):
    halves = Halves(TAPS)
    for batch in batches:
        halves.update(batch, tensors_of(batch))
    return halves


def histogram(values, tensor):
    expected = Histogram(tensor)
    expected.update(values)
    return state(expected)


def state(histogram):
    return histogram.counts.tobytes(), histogram.exponent, histogram.amax


def states(halves, taps=TAPS):
    return halves.images, [[state(half[name]) for name in taps] for half in halves.histograms]


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def test_a_half_is_the_parity_of_the_bytes_checksum(images):
    assert [half_of(image) for image in images] == [zlib.crc32(image.tobytes()) % 2 for image in images]
    assert 10 < sum(half_of(image) for image in images) < 30
    assert [half_of(image) for image in np.asfortranarray(images)] == [half_of(image) for image in images]
    assert any(half_of(images[0] + np.float32(k)) != half_of(images[0]) for k in range(1, 9)), "the content decides"


def test_halves_equal_sorting_by_hand(images):
    halves = seen(images[:25], images[25:])
    odd = np.array([zlib.crc32(image.tobytes()) % 2 == 1 for image in images])
    assert halves.images == [40 - odd.sum(), odd.sum()]
    for half, chosen in enumerate((~odd, odd)):
        for name in ("per image", "windows"):
            expected = histogram(tensors_of(images[chosen])[name], name)
            assert state(halves.histograms[half][name]) == expected
            assert state(halves.histograms[1 - half][name]) != expected


def test_a_tensor_that_cannot_be_split_goes_to_the_first_image(images):
    for start in range(0, 40, 8):
        batch = images[start : start + 8]
        halves = seen(batch)
        assert halves.histograms[half_of(batch[0])]["whole"].size == tensors_of(batch)["whole"].size
        assert halves.histograms[1 - half_of(batch[0])]["whole"].size == 0


def test_tensors_without_axes_or_elements_are_taken(images):
    halves = Halves(("scalar", "empty"))
    halves.update(images, {"scalar": np.float32(3).reshape(()), "empty": np.zeros((0, 4), np.float32)})
    assert sum(half["scalar"].size for half in halves.histograms) == 1
    assert halves.shift({"scalar": 3.0, "empty": 1.0}, lambda h: h.amax) is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_order_and_batches_do_not_change_a_byte(data):
    images = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(12, 6)).astype(np.float32)
    order = data.draw(st.permutations(range(12)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 12), min_size=2, max_size=2)))
    taps = ("per image", "windows")
    assert states(seen(*np.split(images[list(order)], cuts)), taps) == states(seen(images), taps)


def test_both_halves_together_are_the_histograms_of_all_images(images):
    total = seen(images[:30], images[30:]).total()
    assert tuple(total) == TAPS
    for name in ("per image", "windows"):
        assert state(total[name]) == histogram(tensors_of(images)[name], name)
    assert total["whole"].size == sum(tensors_of(part)["whole"].size for part in (images[:30], images[30:]))


def test_the_shift_is_that_of_the_halves(images):
    images[0, 2] = 50
    odd = np.array([half_of(image) == 1 for image in images])
    tensors, halves = tensors_of(images), seen(images)
    taps = ("per image", "windows")
    amax = {name: float(np.abs(tensors[name]).max()) for name in taps}
    shift = halves.shift(amax, lambda h: h.amax)
    by_hand = {}
    for name in taps:
        rows = np.repeat(odd, len(tensors[name]) // 40)
        one, other = (float(np.abs(tensors[name][chosen]).max()) for chosen in (rows, ~rows))
        by_hand[name] = abs(one - other) / amax[name]
    assert shift.median == pytest.approx(np.median(list(by_hand.values())))
    assert shift.largest == max(by_hand.values()) == by_hand[shift.tensor]
    assert shift.largest > 0.5


def test_equal_halves_have_no_shift_and_one_half_has_none(images):
    assert seen(images).shift({"per image": 4.0}, lambda _: 4.0).median == 0
    same_half = images[[half_of(image) == 0 for image in images]]
    assert seen(same_half).shift({"per image": 4.0}, lambda h: h.amax) is None
    assert seen(images).shift({}, lambda h: h.amax) is None
