"""Picture files: the formats that are read, and their pixels. The only place where a picture is opened.

Pillow chooses a decoder by a file's content, whatever its name, and not all decoders are harmless: the one for EPS runs
Ghostscript. Only those of `FORMATS` see a file, and none of them decodes a picture that `check_size` refuses.
"""

from __future__ import annotations

import contextlib
import struct
import warnings
from typing import TYPE_CHECKING

import numpy as np

from calib.errors import DataError, MissingError
from edge.images.preprocess import Uint8, check_size

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
}
"""Pillow's name of a format -> how its files are named. A file of several pictures gives its first."""
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_START_BYTES = 16  # what Pillow tells formats apart by
_EXIF_BYTES = 1 << 17
"""Larger blocks are refused: the entries of a damaged one can each refer to all of it."""
_SCANS = 100  # a progressive JPEG has about ten; each takes a pass over the picture
_STRIP_TAGS = (273, 279, 324, 325)  # offsets and lengths of strips and tiles
_STRIPS = 1 << 20
_SLOW_DECODERS = {"ppm", "ppm_plain", "bmp_rle"}  # Pillow's own, in Python: microseconds per sample
_SLOW_SAMPLES = 1 << 24


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a part of the path below `root` starts with a dot: `._x.png` of macOS, `.ipynb_checkpoints`."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def picture_files(folder: Path) -> list[Path]:
    """The picture files at any depth below a folder, sorted, without hidden ones and those of hidden folders."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(p, folder))


def decode(path: Path) -> Uint8:
    """An image file as uint8 (H, W, C), C = 1 (grey) or 3 (RGB). Raises DataError naming a file that cannot be decoded."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingError("pillow is not installed", next_command="pip install 'ufovit-edge[build]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags and unusual palettes: the pixels decode, or they raise
            _check_strips(path)
            with Image.open(path, formats=tuple(FORMATS)) as stored:
                check_size(stored.height, stored.width, path)
                _check_effort(stored, path)
                stored.load()
                if len(stored.info.get("exif") or b"") > _EXIF_BYTES:
                    raise _undecodable_error(path, "an EXIF block of more than 128 KiB")
                pixels = _to_uint8(ImageOps.exif_transpose(stored))
    except DataError:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, TypeError and more out of Pillow
        raise _undecodable_error(path, _foreign_format(path) or error or type(error).__name__) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _check_strips(path: Path) -> None:
    """Raise DataError for a TIFF file of very many strips or tiles: Pillow lists them all before it knows the size."""
    with path.open("rb") as stream:
        start = stream.read(_START_BYTES)
        order = {b"II": "<", b"MM": ">"}.get(start[:2])
        if order is None:
            return
        large = b"+" in start[2:4]  # BigTIFF
        stream.seek(struct.unpack_from(order + ("Q" if large else "I"), start, 8 if large else 4)[0])
        (entries,) = struct.unpack(order + ("Q" if large else "H"), stream.read(8 if large else 2))
        entry = struct.Struct(order + ("HHQ8x" if large else "HHI4x"))
        for _ in range(min(entries, 1 << 16)):
            tag, _, count = entry.unpack(stream.read(entry.size))
            if tag in _STRIP_TAGS and count > _STRIPS:
                raise _undecodable_error(path, f"a TIFF file of {count:,} strips or tiles")


def _check_effort(stored: Image.Image, path: Path) -> None:
    """Raise DataError for a picture that takes minutes to decode: many scans of a JPEG, or a decoder written in Python."""
    if stored.format in ("JPEG", "MPO"):
        scans = path.read_bytes().count(b"\xff\xda")
        if scans > _SCANS:
            raise _undecodable_error(path, f"a JPEG file of {scans:,} scans")
    decoders = {tile[0] for tile in getattr(stored, "tile", ())}
    samples = stored.height * stored.width * len(stored.getbands())
    if decoders & _SLOW_DECODERS and max(samples, path.stat().st_size) > _SLOW_SAMPLES:
        raise _undecodable_error(path, f"a large {stored.format} file of an unusual kind, which takes minutes to decode")


def _undecodable_error(path: Path, found: object) -> DataError:
    return DataError(
        "image cannot be decoded",
        where=path,
        found=found,
        allowed=", ".join(FORMATS),
        next_command="repair, convert or remove the file, then run again",
    )


def _foreign_format(path: Path) -> str:
    """The format that a file's first bytes show, if it is known and not in FORMATS, else "". Decodes nothing."""
    from PIL import Image

    try:
        with path.open("rb") as stream:
            start = stream.read(_START_BYTES)
    except OSError:
        return ""
    if start.startswith(b"%PDF"):  # which Pillow only writes
        return "a PDF file"
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # of a short file
            if accept is not None and accept(start) is True:
                return "" if name in FORMATS else f"a file of the format {name}"
    return ""


def _to_uint8(image: Image.Image) -> Uint8:
    if image.mode.startswith("I"):  # 16-bit grey: I;16, I;16B, or I with values up to 65535
        return (np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image, dtype=np.uint8)
