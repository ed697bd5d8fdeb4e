"""Oracle: Pillow's antialiased bilinear resize, in its floating-point mode and in its 8-bit mode."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import at_most_mib
from PIL import Image

from calib.errors import InputError
from edge.images.preprocess import Preprocess
from edge.images.resampling import _resample_rows, resample_matrix

EIGHT_BIT = 1.02
"""Pillow's 8-bit mode rounds after each of its two passes, by at most 1/2 each: the first error is averaged by the second
pass, whose weights sum to 1. The rest is for its fixed-point weights of 22 bits."""
UNIT = Preprocess(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, channels), dtype=np.uint8)


def pillow(pixels, preprocess, mode):
    """Resized to `resize` on the shorter side and cropped, (S, S, C) on the scale of 0 to 255."""
    height, width = pixels.shape[:2]
    size = tuple(round(side * preprocess.resize / min(height, width)) for side in (width, height))
    planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, c])) for c in range(pixels.shape[2])]
    if mode == "F":
        planes = [plane.convert("F") for plane in planes]
    resized = np.stack([np.asarray(p.resize(size, Image.Resampling.BILINEAR), dtype=np.float64) for p in planes], axis=2)
    top, left = ((n - preprocess.image_size) // 2 for n in resized.shape[:2])
    return resized[top : top + preprocess.image_size, left : left + preprocess.image_size]


@pytest.mark.parametrize(
    ("height", "width", "image_size", "resize"),
    [
        (28, 28, 28, 28),  # nothing to do
        (28, 28, 64, 64),  # up
        (100, 100, 32, 32),  # down, antialiased
        (97, 61, 32, 32),  # portrait
        (61, 97, 32, 32),  # landscape
        (48, 300, 32, 40),  # panorama, centre crop
        (300, 48, 32, 40),
        (50, 33, 24, 37),  # odd margins
        (1, 1, 16, 16),
        (32, 500, 16, 16),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows(height, width, image_size, resize, channels):
    preprocess = replace(UNIT, image_size=image_size, resize=resize)
    pixels = picture(height, width, channels)
    found = preprocess(pixels).transpose(1, 2, 0) * 255.0
    assert found.shape == (image_size, image_size, 3)
    np.testing.assert_allclose(found, pillow(pixels, preprocess, "F") + np.zeros(3), rtol=0, atol=2e-3)
    np.testing.assert_allclose(found, pillow(pixels, preprocess, "L") + np.zeros(3), rtol=0, atol=EIGHT_BIT)


@given(height=st.integers(4, 60), width=st.integers(4, 60), size=st.integers(1, 40), margin=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_resize_is_pillows_at_any_size(height, width, size, margin):
    preprocess = replace(UNIT, image_size=size, resize=size + margin)
    pixels = picture(height, width, 1, seed=height * 61 + width)
    found = preprocess(pixels)[0] * 255.0
    np.testing.assert_allclose(found, pillow(pixels, preprocess, "F")[:, :, 0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("wrong", ["nearest", "transposed", "shifted", "not antialiased"])
def test_the_oracle_tells_other_resizings_apart(wrong):
    preprocess = replace(UNIT, image_size=32, resize=32)
    pixels = picture(96, 96, 1)
    image = Image.fromarray(pixels[:, :, 0])
    other = {
        "nearest": image.resize((32, 32), Image.Resampling.NEAREST),
        "transposed": image.transpose(Image.Transpose.TRANSPOSE).resize((32, 32), Image.Resampling.BILINEAR),
        "shifted": image.resize((32, 32), Image.Resampling.BILINEAR, box=(1, 0, 96, 96)),
        "not antialiased": image.transform((32, 32), Image.Transform.AFFINE, (3, 0, 0, 0, 3, 0), Image.Resampling.BILINEAR),
    }[wrong]
    assert np.abs(preprocess(pixels)[0] * 255 - np.asarray(other, np.float64)).max() > 10 * EIGHT_BIT


def test_scaling_and_normalisation_per_channel():
    preprocess = Preprocess(4, 4, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:] = (0, 255, 51)
    found = preprocess(pixels)
    expected = [(0 - 0.1) / 0.5, (1 - 0.2) / 0.25, (0.2 - 0.3) / 2.0]
    np.testing.assert_allclose(found.reshape(3, -1), np.repeat(np.float64(expected)[:, None], 16, axis=1), atol=1e-6)


def test_grey_is_the_same_as_three_equal_channels():
    preprocess = Preprocess(16, 20, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    grey = picture(30, 40, 1)
    np.testing.assert_allclose(preprocess(grey), preprocess(np.repeat(grey, 3, axis=2)), rtol=0, atol=1e-6)
    assert not np.allclose(preprocess(grey)[0], preprocess(grey)[1]), "each channel has its own normalisation"


def test_pure_function_of_the_pixels():
    preprocess = Preprocess(16, 20, (0.5,) * 3, (0.5,) * 3)
    images = np.stack([picture(40, 30, 3, seed) for seed in range(3)])
    before = images.copy()
    batch = preprocess.batch(images)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(batch, preprocess.batch(images))
    np.testing.assert_array_equal(batch, np.stack([preprocess(image) for image in images]))
    strided = np.asfortranarray(images[0])
    np.testing.assert_array_equal(preprocess(strided), batch[0])
    batch[:] = 0
    assert preprocess.batch(images).any()


@given(size_in=st.integers(1, 200), size_out=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_resampling_keeps_constants_and_never_overshoots(size_in, size_out):
    matrix = resample_matrix(size_in, size_out)
    assert matrix.shape == (size_out, size_in)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(matrix, np.eye(size_in)) if size_in == size_out else None
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-5)


def test_only_what_is_cut_out_is_computed():
    """The whole matrix of the longer axis has 4096 rows of 9600 numbers, 300 MiB, of which 224 are used."""
    preprocess = replace(UNIT, image_size=224, resize=256)
    with at_most_mib(80):
        assert preprocess(picture(600, 9600, 1)).shape == (3, 224, 224)


@given(size_in=st.integers(1, 90), size_out=st.integers(1, 90), data=st.data())
@settings(max_examples=40, deadline=None)
def test_rows_are_those_of_the_whole_matrix(size_in, size_out, data):
    start = data.draw(st.integers(0, size_out - 1))
    count = data.draw(st.integers(1, size_out - start))
    rows = _resample_rows(size_in, size_out, start, count)
    assert rows.tobytes() == resample_matrix(size_in, size_out)[start : start + count].tobytes()


@pytest.mark.parametrize(("height", "width"), [(3, 4000), (1, 9000), (4000, 3), (2, 33)])
def test_a_line_is_no_picture(height, width):
    with pytest.raises(InputError, match=rf"picture too narrow[\s\S]*{width}x{height}[\s\S]*16"), at_most_mib(4):
        replace(UNIT, image_size=224, resize=224)(picture(height, width))
    assert UNIT(picture(2, 32)).shape == (3, 8, 8)


@pytest.mark.parametrize("resize", [4097, 10**9, 10**400])
def test_sizes_that_would_take_gigabytes_are_refused(resize):
    for fields in ({"resize": resize}, {"image_size": resize, "resize": resize}):
        with pytest.raises(InputError, match=r"images too large[\s\S]*at most 4096"):
            Preprocess.from_json(UNIT.as_json() | fields)
    with pytest.raises(InputError, match="images too large"):
        UNIT.for_image_size(resize)
    assert replace(UNIT, resize=4096).resize == 4096


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 3), np.int8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 2), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 0, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images):
    with pytest.raises(InputError, match=rf"not a batch of images[\s\S]*found: {images.dtype} .*[\s\S]*allowed: uint8"):
        UNIT.batch(images)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": 9},
        {"image_size": 0},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, -1.0, 1.0)},
        {"std": (1.0, float("nan"), 1.0)},
        {"std": (1.0, float("inf"), 1.0)},
        {"std": (1.0, 1.0)},
        {"mean": (0.0,)},
        {"mean": (0.0, float("nan"), 0.0)},
        {"mean": (0.0, float("-inf"), 0.0)},
    ],
)
def test_impossible_preprocessing_cannot_be_made(fields):
    with pytest.raises(InputError, match=r"cuts more than it resizes|three finite values"):
        replace(UNIT, **fields)


def test_json_round_trip():
    preprocess = Preprocess(16, 20, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    assert Preprocess.from_json(preprocess.as_json()) == preprocess


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": None},
        {"image_size": "x"},
        {"image_size": 7.5},
        {"mean": [0, 0]},
        {"mean": 3},
        {"std": [1, 1, "x"]},
        {"std": [1, 1, 10**400]},
        {"crop": 1},
        "std",
        "resize",
    ],
)
def test_malformed_json_is_refused(change):
    fields = UNIT.as_json()
    fields = {k: v for k, v in fields.items() if k != change} if isinstance(change, str) else fields | change
    with pytest.raises(InputError, match=r"malformed preprocessing|three finite values"):
        Preprocess.from_json(fields)


def test_digest_changes_with_every_field():
    base = Preprocess(16, 20, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    changed = [
        replace(base, image_size=15),
        replace(base, resize=21),
        *(replace(base, mean=tuple(v + (i == j) * 1e-9 for j, v in enumerate(base.mean))) for i in range(3)),
        *(replace(base, std=tuple(v + (i == j) * 1e-9 for j, v in enumerate(base.std))) for i in range(3)),
    ]
    digests = {p.sha256 for p in (base, *changed)}
    assert len(digests) == 1 + len(changed)
    assert replace(base).sha256 == base.sha256


def test_another_image_size_keeps_the_crop_ratio():
    base = Preprocess(224, 256, (0.5,) * 3, (0.5,) * 3)
    assert base.for_image_size(448) == replace(base, image_size=448, resize=512)
    assert base.for_image_size(16).resize == 18
    assert replace(base, resize=224).for_image_size(48).resize == 48
