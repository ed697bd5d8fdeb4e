"""Pictures of the page. Oracle: Pillow's decoder."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from camera_fakes import loaded_cv2
from PIL import Image

from calib.errors import MissingError
from edge.camera.web import jpeg


@pytest.mark.parametrize("encoder", [jpeg.with_opencv, jpeg.with_pillow])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((480, 640), (640, 480)),
        ((1080, 1920), (640, 360)),
        ((1920, 1080), (360, 640)),
        ((8, 4000), (640, 1)),
        ((64, 48), (48, 64)),
    ],
)
def test_pictures_keep_their_colours_and_shape_and_get_small(
    encoder: jpeg.Encode, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    if encoder is jpeg.with_opencv:
        loaded_cv2()
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[:, : shape[1] // 2] = (250, 120, 10)
    pixels[:, shape[1] // 2 :] = (10, 60, 200)
    image = Image.open(io.BytesIO(encoder(pixels[:, ::-1])))  # a view that is not contiguous
    assert (image.format, image.size) == ("JPEG", size)
    seen = np.asarray(image.convert("RGB")).astype(int)
    middle = seen[size[1] // 2]
    assert np.abs(middle[size[0] // 4] - (10, 60, 200)).max() < 12
    assert np.abs(middle[3 * size[0] // 4] - (250, 120, 10)).max() < 12


def test_without_opencv_pillow_draws_and_without_both_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert jpeg.jpeg_encoder() is jpeg.with_pillow
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingError, match=r"(?s)neither OpenCV nor Pillow.*pip install 'ufovit-edge\[camera\]'"):
        jpeg.jpeg_encoder()
