"""Labelled images: IDX files, a folder per class, or a list; decoded one by one, refused by name when unreadable.

Every source becomes an `ImageSet`: names, labels (indices into the checkpoint's labels) and the SHA-256 of the content (every
image file's bytes with its label, or the IDX files), whatever the folder is called. Pixels are uint8 (H, W, C) with C = 1 or
3: EXIF orientation applied, palette and CMYK converted to RGB, 16-bit grey scaled to 8 bits, transparency dropped.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calib.errors import InputError, MissingError
from calib.files import sha256_bytes, sha256_file, write_bytes
from edge.images.preprocess import Float32, Preprocess, Uint8

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    Attributes:
        source: where they come from, as given.
        names: one name per image: a path, or `file[index]`.
        labels: int64 (n,), indices into the checkpoint's labels.
        sha256: digest of the content, labels included.
        pixels: position in `names` -> uint8 (H, W, C).
    """

    source: str
    names: tuple[str, ...]
    labels: Int64
    sha256: str
    pixels: Callable[[int], Uint8]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, count: int) -> ImageSet:
        """`count` images spread evenly over the set (all of them when there are fewer): the same ones every time."""
        if count >= len(self):
            return self
        chosen, digest = even_subset(self.sha256, len(self), count)
        names, pixels = tuple(self.names[i] for i in chosen), self.pixels
        return replace(self, names=names, labels=self.labels[chosen], sha256=digest, pixels=lambda i: pixels(int(chosen[i])))

    def batches(self, preprocess: Preprocess, size: int) -> Iterator[Float32]:
        """Preprocessed images in order, float32 (<= size, 3, S, S)."""
        for start in range(0, len(self), size):
            yield np.stack([preprocess(self.pixels(i)) for i in range(start, min(start + size, len(self)))])


def evenly_spread(size: int, count: int) -> Int64:
    """`count` positions spread evenly over `size`, the first and the last among them: the same ones every time."""
    return np.asarray(np.linspace(0, size - 1, count).round().astype(np.int64))


def even_subset(sha256: str, size: int, count: int) -> tuple[Int64, str]:
    """Positions of the images that `ImageSet.take` chooses of a set of `size` images, and the digest of these."""
    if count >= size:
        return np.arange(size), sha256
    chosen = evenly_spread(size, count)
    return chosen, hashlib.sha256(sha256.encode() + chosen.tobytes()).hexdigest()


def data_digest(images: ImageSet, preprocess: Preprocess) -> str:
    """One digest for images as a network sees them: their content and their preprocessing."""
    return sha256_bytes(f"{images.sha256} {preprocess.sha256}".encode())


def open_images(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """The labelled images at `path`: an IDX image file, a folder of IDX files, a folder per class, or a .csv/.txt list.

    Raises InputError naming the path when it is missing, empty, or its labels are not the checkpoint's.
    """
    if not path.exists():
        raise InputError("images not found", where=path)
    if path.is_dir():
        idx = sorted(p for p in path.iterdir() if re.search(r"images-idx3-ubyte(\.gz)?$", p.name))
        if len(idx) > 1:
            raise InputError(
                "several IDX image files in the folder", where=path, found=", ".join(p.name for p in idx), allowed="name one"
            )
        return open_idx(idx[0], labels) if idx else open_folder(path, labels)
    if path.suffix in (".csv", ".txt"):
        return open_list(path, labels)
    return open_idx(path, labels)


def open_unlabelled(path: Path) -> ImageSet:
    """The images at `path`, whatever they show: an image file, every image file below a folder, or an IDX file.

    All labels are 0. Raises InputError for a path that is missing or holds no image.
    """
    if not path.exists():
        raise InputError("images not found", where=path)
    idx = sorted(p for p in (path.iterdir() if path.is_dir() else [path]) if re.search(r"idx3-ubyte(\.gz)?$", p.name))
    if len(idx) == 1:
        images = read_idx(idx[0])
        names = tuple(f"{idx[0].name}[{i}]" for i in range(len(images)))
        digest = sha256_bytes(images.tobytes())
        return ImageSet(str(path), names, np.zeros(len(images), np.int64), digest, lambda i: images[i, :, :, None])
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    return _from_files(path, root, [(image, 0) for image in files if image.suffix.lower() in IMAGE_SUFFIXES])


def open_idx(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """Images of an IDX file `...images-idx3-ubyte[.gz]`, labels from `...labels-idx1-ubyte[.gz]` beside it."""
    label_path = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if label_path == path or not label_path.is_file():
        raise InputError(
            "no label file beside the images",
            where=path,
            found=label_path.name,
            allowed="...images-idx3-ubyte[.gz] with ...labels-idx1-ubyte[.gz]",
        )
    images, classes = read_labelled_idx(path, label_path, labels)
    names = tuple(f"{path.name}[{i}]" for i in range(len(images)))
    digest = sha256_bytes(b"".join(array.tobytes() for array in (images, classes)))
    return ImageSet(str(path), names, classes, digest, lambda i: images[i, :, :, None])


def read_labelled_idx(path: Path, label_path: Path, labels: tuple[str, ...]) -> tuple[Uint8, Int64]:
    """Images (n, H, W) and classes (n,), n >= 1, of two IDX files. Raises InputError where they do not belong together."""
    images, classes = read_idx(path), read_idx(label_path).astype(np.int64)
    if images.ndim != 3 or classes.shape != images.shape[:1] or not len(images):
        raise InputError("images and labels do not match", where=path, found=f"{images.shape} and {classes.shape}")
    if classes.max() >= len(labels):
        raise InputError(
            "labels do not match the checkpoint",
            where=label_path,
            found=f"class {classes.max()}",
            allowed=f"0 to {len(labels) - 1}",
        )
    return images, classes


def open_folder(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """A folder of class folders. A folder's name is a label, a label with other punctuation, or a class index."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise InputError(
            "no class folders", where=path, allowed="one folder per class, named as the labels: " + ", ".join(labels)
        )
    entries = [
        (image, label_index(folder.name, labels, folder))
        for folder in folders
        for image in sorted(folder.rglob("*"))
        if image.suffix.lower() in IMAGE_SUFFIXES
    ]
    return _from_files(path, path, entries)


def open_list(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """A list file: lines `image,label` (.csv) or `image label` (.txt), image paths relative to the file's folder.

    A first CSV line `file,label` or `path,label` is a header; empty lines and lines that start with # are skipped.
    """
    entries = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # spreadsheets put a byte order mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("list cannot be read", where=path, found=error, allowed="UTF-8 text") from error
    rows = csv.reader(lines) if path.suffix == ".csv" else (line.rsplit(None, 1) for line in lines)
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        header = number == 1 and cells[1:] == ["label"]
        if not any(cells) or cells[0].startswith("#") or header:
            continue
        if len(cells) != 2:
            raise InputError("malformed line", where=f"{path}:{number}", found=row, allowed="an image path and a label")
        entries.append((path.parent / cells[0], label_index(cells[1], labels, f"{path}:{number}")))
    return _from_files(path, path.parent, entries)


def label_index(name: str, labels: tuple[str, ...], where: object) -> int:
    """Index of a label written exactly, with other punctuation or case (`t-shirt_top` for `T-shirt/top`), or as an index."""
    if name in labels:
        return labels.index(name)
    plain = [_plain(label) for label in labels]
    if plain.count(_plain(name)) == 1:
        return plain.index(_plain(name))
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    raise InputError("labels do not match the checkpoint", where=where, found=name, allowed=", ".join(labels))


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", "-", label.casefold())


def _from_files(source: Path, root: Path, entries: list[tuple[Path, int]]) -> ImageSet:
    if not entries:
        raise InputError("no images", where=source, allowed=" ".join(sorted(IMAGE_SUFFIXES)))
    missing = [str(image) for image, _ in entries if not image.is_file()]
    if missing:
        raise InputError("images not found", where=source, found=", ".join(missing[:5]) + f" ({len(missing)} in all)")
    content = "".join(f"{sha256_file(image)} {label}\n" for image, label in entries)
    names = tuple(str(image.relative_to(root)) if image.is_relative_to(root) else str(image) for image, _ in entries)
    labels = np.array([label for _, label in entries], dtype=np.int64)
    return ImageSet(str(source), names, labels, sha256_bytes(content.encode()), lambda i: decode(entries[i][0]))


def decode(path: Path) -> Uint8:
    """An image file as uint8 (H, W, C), C = 1 (grey) or 3 (RGB). Raises InputError naming a file that cannot be decoded."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingError("pillow is not installed", next_command="pip install 'ufovit-edge[build]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags and unusual palettes: the pixels decode, or they raise
            with Image.open(path) as stored:
                pixels = _to_uint8(ImageOps.exif_transpose(stored))
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, TypeError and more out of Pillow
        raise InputError(
            "image cannot be decoded", where=path, found=error, next_command="repair or remove the file, then run again"
        ) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _to_uint8(image: Image.Image) -> Uint8:
    if image.mode.startswith("I"):  # 16-bit grey: I;16, I;16B, or I with values up to 65535
        wide = np.asarray(image, dtype=np.int64)
        return (wide.clip(0, 65535) // 257).astype(np.uint8)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image, dtype=np.uint8)


def write_idx(path: Path, values: Uint8) -> None:
    """Write an IDX file of unsigned bytes, gzip-compressed; equal arrays give equal bytes."""
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    write_bytes(path, gzip.compress(header + values.tobytes(), mtime=0))


def read_idx(path: Path) -> Uint8:
    """An IDX file of unsigned bytes (the format of MNIST and Fashion-MNIST), plain or gzip: an array of its shape."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError("file cannot be read", where=path, found=error) from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise InputError("not an IDX file of unsigned bytes", where=path)
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise InputError("truncated IDX file", where=path, found=f"{len(data)} bytes", allowed=f"a header of {header} bytes")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    if len(data) - header != math.prod(shape):
        raise InputError("truncated IDX file", where=path, found=f"{len(data) - header} values", allowed=f"{shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
