#!/usr/bin/env python3
"""Write crops of natural colour photos as PNG files: those that calibrate and those that judge come from different photos.

    python photo_crops.py WHEELS OPENCV_DOC OUT

WHEELS: folder with foolbox, scikit-image and scikit-learn; OPENCV_DOC: Debian's package, unpacked. Writes OUT/calib (photos of
the last two and of OPENCV_DOC) and OUT/eval (foolbox's ImageNet photos). The same files always give the same crops: the squares
of `photos.CROPS` in that order, one per photo at a time, without those under SMALLEST pixels;
larger ones are reduced to LARGEST.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent / "peers")]

from photos import CROPS, calibration_photos, crop_square, labelled_photos, read_photo

from edge.images.preprocess import Uint8

SMALLEST, LARGEST = 224, 384
COUNTS = {"calib": 256, "eval": 128}


def main() -> None:
    wheels, opencv_doc, out = map(Path, sys.argv[1:])
    sources = {"calib": calibration_photos(wheels, opencv_doc), "eval": labelled_photos(wheels)[0]}
    for split, photos in sources.items():
        write_crops(photos, COUNTS[split], out / split)


def write_crops(photos: list[Path], count: int, folder: Path) -> None:
    """Write `count` crops as `folder`/PHOTO-CROP.png."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = [read_photo(photo) for photo in photos]
    written = 0
    for number, crop in enumerate(CROPS):
        for photo, image in zip(photos, pixels, strict=True):
            square = crop_square(image, *crop)
            if written < count and len(square) >= SMALLEST:
                Image.fromarray(reduce(square)).save(folder / f"{photo.stem}-{number:02}.png")
                written += 1
    if written < count:
        raise SystemExit(f"{folder}: {written} crops of {len(photos)} photos, {count} needed")
    print(f"{folder}: {written} crops of {len(photos)} photos")


def reduce(square: Uint8) -> Uint8:
    """At most LARGEST pixels a side, by Pillow's Lanczos filter."""
    if len(square) <= LARGEST:
        return square
    return np.asarray(Image.fromarray(square).resize((LARGEST, LARGEST), Image.Resampling.LANCZOS), np.uint8)


if __name__ == "__main__":
    main()
