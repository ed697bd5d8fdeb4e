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
import numpy.typing as npt

from calib.errors import DataError, MissingError
from calib.files import describe_foreign
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
_TOOL_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""What archivers, network storage and file systems leave in folders of pictures."""
_FOREIGN_BYTES = 1024
_START_BYTES = 16  # what Pillow tells formats apart by
_EXIF_BYTES = 1 << 17
"""Larger blocks are refused: the entries of a damaged one can each refer to all of it."""
_SCANS = 100  # a progressive JPEG has about ten; each takes a pass over the picture
_STRIP_TAGS = (273, 279, 324, 325)  # offsets and lengths of strips and tiles
_STRIPS = 1 << 20
_SLOW_DECODERS = {"ppm", "ppm_plain", "bmp_rle"}  # Pillow's own, in Python: microseconds per sample
_SLOW_SAMPLES = 1 << 24


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a part of the path below `root` starts with a dot, or is a folder of a tool: `._x.png`, `__MACOSX`."""
    return any(part.startswith(".") or part in _TOOL_FOLDERS for part in path.relative_to(root).parts)


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
                pixels = _to_uint8(ImageOps.exif_transpose(stored), path, stored.format)
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
        next_command="git lfs pull" if "LFS" in str(found) else "repair, convert or remove the file, then run again",
    )


def _foreign_format(path: Path) -> str:
    """The format that a file's first bytes show, if it is known and not in FORMATS, else "". Decodes nothing."""
    from PIL import Image

    try:
        with path.open("rb") as stream:
            beginning = stream.read(_FOREIGN_BYTES)
    except OSError:
        return ""
    if foreign := describe_foreign(beginning):
        return foreign
    start = beginning[:_START_BYTES]
    if start.startswith(b"%PDF"):  # which Pillow only writes
        return "a PDF file"
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # of a short file
            if accept is not None and accept(start) is True:
                return "" if name in FORMATS else f"a file of the format {name}"
    return ""


def _to_uint8(image: Image.Image, path: Path, stored_as: str | None) -> Uint8:
    if image.mode == "F" or (image.mode == "I" and stored_as == "TIFF"):
        return _scaled(np.asarray(image), path)
    if image.mode.startswith("I"):  # 16-bit grey: I;16, I;16B, or I with values up to 65535
        return (np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image, dtype=np.uint8)


def _scaled(values: npt.NDArray[np.float32] | npt.NDArray[np.int32], path: Path) -> Uint8:
    """Float pixels of [0, 1] as 8 bits. Raises DataError for any others, and for wide integers: their white is not known."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and 0 <= low <= high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    raise DataError(
        "the range of the pixels is not known",
        where=path,
        found=f"{values.dtype} pixels from {low:g} to {high:g}",
        allowed="8-bit or 16-bit pixels, or floats from 0 to 1",
        next_command="convert the file to 8-bit PNG or TIFF",
    )
