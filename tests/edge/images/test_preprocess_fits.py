"""Rectangles, stretch and letterbox, layout, colour, scale and type. Oracles: Pillow's own resize in floats, and arithmetic."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from calib.errors import InputError
from edge.images.golden_pair import GoldenPair, check_golden, make_golden, parse_golden, write_golden
from edge.images.preprocess import Preprocess

UNIT = Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3)
WIDE = replace(UNIT, image_size=(48, 80), resize=48)


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, channels), dtype=np.uint8)


def by_pillow(pixels, height, width):
    """Resized in floats, (height, width, C) on the scale of 0 to 255."""
    planes = [Image.fromarray(pixels[:, :, c].astype(np.float32)) for c in range(pixels.shape[2])]
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.BILINEAR), np.float64) for p in planes], axis=2)


@pytest.mark.parametrize(
    ("picture_size", "image_size", "resize", "resized"),
    [
        ((48, 80), (48, 80), 48, (48, 80)),
        ((100, 100), (48, 80), 48, (80, 80)),  # the width decides
        ((60, 200), (48, 80), 48, (48, 160)),  # the height decides
        ((200, 60), (48, 80), 60, (333, 100)),  # covers 60 x 100
        ((300, 200), (80, 48), 48, (80, 53)),
        ((31, 200), (320, 192), 192, (320, 2065)),
    ],
)
def test_a_rectangle_is_just_covered_and_the_centre_cut_out(picture_size, image_size, resize, resized):
    preprocess = replace(UNIT, image_size=image_size, resize=resize)
    pixels, (height, width) = picture(*picture_size), image_size
    found = preprocess(pixels)
    assert found.shape == preprocess.shape == (3, height, width)
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    expected = by_pillow(pixels, *resized)[top : top + height, left : left + width]
    np.testing.assert_allclose(found.transpose(1, 2, 0) * 255, expected, rtol=0, atol=2e-3)
    placed = preprocess.placement(*picture_size)
    assert placed.offset == (-top, -left)
    assert placed.scale == (resized[0] / picture_size[0], resized[1] / picture_size[1])


def test_stretched_to_the_sides():
    pixels = picture(31, 97)
    found = replace(WIDE, fit="stretch")(pixels)
    np.testing.assert_allclose(found.transpose(1, 2, 0) * 255, by_pillow(pixels, 48, 80), rtol=0, atol=2e-3)
    assert replace(WIDE, fit="stretch").placement(31, 97).offset == (0, 0)


@pytest.mark.parametrize(
    ("picture_size", "resized", "offset"),
    [
        ((100, 100), (48, 48), (0, 16)),
        ((20, 80), (20, 80), (14, 0)),
        ((10, 160), (5, 80), (21, 0)),  # 43 rows to fill: 21 above, 22 below
        ((96, 160), (48, 80), (0, 0)),
    ],
)
def test_a_letterbox_shows_the_whole_picture_in_the_centre(picture_size, resized, offset):
    preprocess = replace(WIDE, fit="letterbox", fill=7, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0))
    pixels = picture(*picture_size)
    expected = np.full((48, 80, 3), 7.0)
    inside = tuple(slice(start, start + length) for start, length in zip(offset, resized, strict=True))
    expected[inside] = by_pillow(pixels, *resized)
    found = preprocess(pixels).transpose(1, 2, 0)
    np.testing.assert_allclose(found, (expected / 255 - preprocess.mean) / preprocess.std, rtol=0, atol=1e-4)
    assert preprocess.placement(*picture_size).offset == offset
    assert not np.allclose(found, replace(preprocess, fill=8)(pixels).transpose(1, 2, 0)) or resized == (48, 80)


def test_the_placement_says_where_a_point_is_seen():
    """A bright pixel of a dark picture, found again by arithmetic."""
    for preprocess in (replace(WIDE, fit="letterbox", fill=0), replace(WIDE, fit="stretch"), WIDE):
        pixels = np.zeros((480, 640, 3), np.uint8)
        pixels[250:260, 300:310] = 255
        row, column = np.unravel_index(preprocess(pixels)[0].argmax(), (48, 80))
        placed = preprocess.placement(480, 640)
        (scale_y, scale_x), (top, left) = placed.scale, placed.offset
        assert abs(255 * scale_y + top - (row + 0.5)) <= 1
        assert abs(305 * scale_x + left - (column + 0.5)) <= 1


def test_layout_colour_and_scale():
    pixels = picture(8, 8)
    plain = UNIT(pixels)
    np.testing.assert_array_equal(replace(UNIT, layout="nhwc")(pixels), plain.transpose(1, 2, 0))
    assert replace(UNIT, layout="nhwc", image_size=(8, 12)).shape == (8, 12, 3)
    np.testing.assert_array_equal(replace(UNIT, colour="bgr")(pixels), plain[::-1])
    np.testing.assert_allclose(replace(UNIT, scale=1)(pixels), pixels.transpose(2, 0, 1), rtol=1e-6)
    normalised = replace(UNIT, colour="bgr", scale=1, mean=(104.0, 117.0, 123.0), std=(58.0, 57.0, 56.0))(pixels)
    expected = (pixels[:, :, ::-1].astype(np.float64) - (104, 117, 123)) / (58, 57, 56)
    np.testing.assert_allclose(normalised.transpose(1, 2, 0), expected, atol=1e-5)
    grey = replace(UNIT, colour="grey", mean=(0.5,), std=(0.25,))
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(grey(pixels), (luma[None] / 255 - 0.5) / 0.25, atol=1e-5)
    one = picture(8, 8, 1)
    np.testing.assert_allclose(grey(one), (one.transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_array_equal(replace(UNIT, colour="bgr")(one), UNIT(one))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_uint8_is_rounded_pixels(channels, layout):
    preprocess = replace(WIDE, dtype="uint8", layout=layout)
    pixels = picture(61, 97, channels)
    found = preprocess.batch(np.stack([pixels, pixels]))
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.uint8, (2, *preprocess.shape), True)
    exact = replace(preprocess, dtype="float32")(pixels) * np.float64(255)
    assert np.abs(found[0] - exact).max() <= 0.5 + 1e-3
    white = preprocess(np.full((20, 30, channels), 255, np.uint8))
    assert white.min() == 255, "nothing wraps around"


def test_fields_are_stored_where_they_differ_from_the_defaults():
    assert set(UNIT.as_json()) == {"image_size", "resize", "mean", "std"}
    assert UNIT.as_json()["image_size"] == 8
    assert replace(UNIT, image_size=(8, 8)) == UNIT
    changed = [
        WIDE, replace(WIDE, image_size=(80, 48)), replace(WIDE, fit="stretch"), replace(WIDE, fit="letterbox"),
        replace(WIDE, fit="letterbox", fill=0), replace(WIDE, layout="nhwc"), replace(WIDE, colour="bgr"),
        replace(WIDE, colour="grey", mean=(0.0,), std=(1.0,)), replace(WIDE, scale=1), replace(WIDE, dtype="uint8"),
    ]  # fmt: skip
    assert len({p.sha256 for p in (UNIT, *changed)}) == 1 + len(changed)
    for preprocess in changed:
        stored = json.loads(json.dumps(preprocess.as_json()))
        assert Preprocess.from_json(stored) == preprocess
        assert Preprocess.from_json(stored).sha256 == preprocess.sha256
    whole = Preprocess(8, 8, (0, 0, 0), (1, 1, 1), scale=255)
    assert (whole, whole.sha256) == (UNIT, UNIT.sha256), "equal objects have equal digests"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": [48]}, "malformed preprocessing"),
        ({"image_size": [48, 80, 3]}, "malformed preprocessing"),
        ({"image_size": [48, 80.0]}, "malformed preprocessing"),
        ({"image_size": [48, True]}, "malformed preprocessing"),
        ({"image_size": [0, 80]}, "cuts more than it resizes"),
        ({"image_size": [48, 4097]}, "images too large"),
        ({"resize": 47}, "cuts more than it resizes"),
        ({"resize": True}, "malformed preprocessing"),
        ({"mean": "123"}, "malformed preprocessing"),
        ({"mean": [True, 0, 0]}, "malformed preprocessing"),
        ({"fit": "squash"}, "no such fit\n  found: 'squash'\n  allowed: crop, stretch, letterbox"),
        ({"fit": 1}, "malformed preprocessing"),
        ({"fit": "letterbox", "resize": 60}, "nothing is cut off"),
        ({"fill": 256}, "fill of a letterbox"),
        ({"fill": 1.0}, "malformed preprocessing"),
        ({"layout": "hwc"}, "no such layout"),
        ({"colour": "yuv"}, "no such colour"),
        ({"colour": "grey"}, "one finite value each"),
        ({"scale": 0}, "divided by this scale"),
        ({"scale": float("nan")}, "divided by this scale"),
        ({"scale": "255"}, "malformed preprocessing"),
        ({"dtype": "float16"}, "no such dtype"),
        ({"dtype": "uint8", "mean": [0.5] * 3}, "takes pixels as they are"),
        ({"dtype": "uint8", "scale": 128}, "takes pixels as they are"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Preprocess.from_json({**WIDE.as_json(), **fields})


def test_another_size_keeps_the_crop_and_everything_else():
    base = replace(WIDE, resize=60, colour="bgr")
    assert base.for_image_size((96, 160)) == replace(base, image_size=(96, 160), resize=120)
    assert base.for_image_size(96) == replace(base, image_size=96, resize=120)
    assert replace(WIDE, fit="letterbox").for_image_size((20, 30)).resize == 20


ROUNDED = replace(WIDE, dtype="uint8", layout="nhwc")


@pytest.mark.parametrize("preprocess", [ROUNDED, replace(WIDE, fit="letterbox"), replace(WIDE, scale=1)])
def test_a_golden_pair_of_any_kind(tmp_path, preprocess):
    pair = make_golden(picture(400, 600), preprocess)
    placed = preprocess.placement(*pair.pixels.shape[:2])
    assert max(placed.scale) == pytest.approx(0.5, rel=0.05), "stored at twice the size that the network sees"
    write_golden(tmp_path / "golden.npz", pair)
    stored = parse_golden((tmp_path / "golden.npz").read_bytes(), tmp_path / "golden.npz")
    check_golden(stored, preprocess, "here")
    for changed in (pair.tensor[::-1], pair.tensor[..., ::-1], pair.tensor.astype(np.float64), pair.tensor // 2):
        with pytest.raises(Exception, match="preprocesses images in another way"):
            check_golden(GoldenPair(pair.pixels, changed), preprocess, "here")


def test_a_level_here_and_there_is_rounding_and_half_of_them_is_not():
    pair = make_golden(picture(60, 90), ROUNDED)
    few, many = pair.tensor.copy(), pair.tensor.copy()
    few.flat[:5] ^= 1
    check_golden(GoldenPair(pair.pixels, few), ROUNDED, "here")
    many.flat[::2] ^= 1
    with pytest.raises(Exception, match="in another way"):
        check_golden(GoldenPair(pair.pixels, many), ROUNDED, "here")
