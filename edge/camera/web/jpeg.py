"""Encodes pictures as JPEG for the page: with OpenCV if it is installed, else with Pillow."""

import contextlib
import importlib
import io
from collections.abc import Callable

import numpy as np

from calib.errors import MissingError
from edge.camera.opencv import load_cv2, to_bgr
from edge.images.preprocess import Uint8

MAX_SIDE = 640
"""Pixels of the longer side of a picture on the page."""
QUALITY = 75

Encode = Callable[[Uint8], bytes]
"""uint8 (H, W, 3) RGB -> a JPEG file of at most MAX_SIDE pixels a side."""


def jpeg_encoder() -> Encode:
    """The encoder of this machine. Raises MissingError if there is none."""
    for module, encode in (("cv2", with_opencv), ("PIL", with_pillow)):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
            return encode
    what = "no JPEG encoder: neither OpenCV nor Pillow is installed"
    raise MissingError(what, next_command="pip install 'ufovit-edge[camera]'")


def size_on_page(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the same aspect ratio, the longer at most MAX_SIDE; nothing is enlarged."""
    share = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def with_opencv(pixels: Uint8) -> bytes:
    """See `Encode`."""
    cv2 = load_cv2()
    height, width = size_on_page(*pixels.shape[:2])
    picture = np.ascontiguousarray(pixels)
    if (height, width) != picture.shape[:2]:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    success, data = cv2.imencode(".jpg", to_bgr(picture), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not success:
        raise ValueError(f"OpenCV wrote no JPEG of {pixels.shape}")
    return bytes(data)


def with_pillow(pixels: Uint8) -> bytes:
    """See `Encode`."""
    from PIL import Image

    height, width = size_on_page(*pixels.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if (height, width) != pixels.shape[:2]:
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
