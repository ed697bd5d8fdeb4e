"""Read natural colour photos from Python wheels and Debian's opencv-doc: labelled ones for evaluation, others for calibration.

Every calibration photo gives several square crops, always the same ones: the whole shorter side in the centre, then the four
corners and smaller centres, in the order of `CROPS`, as many as the requested number of crops needs.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from edge.images.picture_file import FORMATS
from edge.images.preprocess import Float32, Preprocess, Uint8

CROPS = (
    (1.0, "centre"),
    *((0.75, corner) for corner in ("top-left", "top-right", "bottom-left", "bottom-right")),
    (0.6, "centre"),
    *((0.5, corner) for corner in ("top-left", "top-right", "bottom-left", "bottom-right")),
    (0.8, "centre"),
)
"""(side of the square as a share of the photo's shorter side, place)."""

FROM_WHEELS = (
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
FROM_OPENCV_DOC = (
    "examples/alphamat/input_images/plant.jpg",
    *(
        f"examples/data/{name}"
        for name in (
            "aero1.jpg", "aloeL.jpg", "apple.jpg", "baboon.jpg", "board.jpg", "building.jpg", "butterfly.jpg",
            "chicky_512.png", "fruits.jpg", "graf1.png", "home.jpg", "left.jpg", "leuvenA.jpg", "licenseplate_motion.jpg",
            "messi5.jpg", "orange.jpg", "rubberwhale1.png", "squirrel_cls.jpg",
        )
    ),
    *(f"examples/hfs/data/00{number}.jpg" for number in range(3)),
    *(f"examples/text/scenetext0{number}.jpg" for number in (1, 3, 4, 5, 6)),
    "examples/text/scenetext_segmented_word01.jpg",
    *(
        f"opencv4/html/{name}"
        for name in (
            "astra_color.jpg", "bicubicOutput.jpg", "fusion_mertens.jpg", "pexels_double_decker_bus.jpg",
            "retina_TreeHdr_small.jpg", "space_shuttle.jpg", "studentsSample_input.jpg",
        )
    ),
)  # fmt: skip


def labelled_photos(wheels: Path) -> tuple[list[Path], list[int]]:
    """foolbox's ImageNet photos and their classes, from the file names: imagenet_00_243.jpg has class 243."""
    files = sorted((wheels / "foolbox/data").glob("imagenet_*"))
    return files, [int(re.split(r"[_.]", file.name)[2]) for file in files]


def calibration_photos(wheels: Path, opencv_doc: Path) -> list[Path]:
    """The calibration photos; those of opencv-doc only if it was unpacked."""
    shared = opencv_doc / "usr/share/doc/opencv-doc"
    files = [*(wheels / name for name in FROM_WHEELS), *(shared / name for name in FROM_OPENCV_DOC)]
    return [file for file in files if file.is_file()]


def read_photo(path: Path) -> Uint8:
    """Pixels of a photo, uint8 (H, W, 3)."""
    with Image.open(path, formats=tuple(FORMATS)) as image:
        return np.asarray(image.convert("RGB"), np.uint8)


def crops(photos: list[Path], limit: int, preprocess: Preprocess) -> Float32:
    """At most `limit` preprocessed crops (n, 3, S, S), the same number of every photo."""
    each = max(1, min(len(CROPS), limit // len(photos)))
    squares = [crop_square(pixels, *crop) for pixels in map(read_photo, photos) for crop in CROPS[:each]]
    return np.stack([preprocess(square) for square in squares[:limit]])


def crop_square(pixels: Uint8, share: float, place: str) -> Uint8:
    height, width = pixels.shape[:2]
    side = round(share * min(height, width))
    free_rows, free_columns = height - side, width - side
    row = free_rows // 2 if place == "centre" else free_rows * place.startswith("bottom")
    column = free_columns // 2 if place == "centre" else free_columns * place.endswith("right")
    return pixels[row : row + side, column : column + side]
