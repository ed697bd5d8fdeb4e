"""Labelled images: IDX files, a folder per class, or a list; decoded one by one, refused by name when unreadable.

Every source becomes an `ImageSet`: names, labels (indices into the checkpoint's labels) and the SHA-256 of the content (every
image file's bytes with its label, or the IDX files), whatever the folder is called. Pixels are uint8 (H, W, C) with C = 1 or
3: EXIF orientation applied, palette and CMYK converted to RGB, 16-bit grey scaled to 8 bits, transparency dropped.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calib.errors import DataError, MissingError
from calib.files import read_regular, sha256_bytes, sha256_file
from edge.images.idx import Int64, read_idx, read_labelled_idx
from edge.images.preprocess import Float32, Preprocess, Uint8

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

LARGEST_LIST_BYTES = 64 << 20


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
        chosen, digest = even_subset(self.sha256, len(self), count)
        names, pixels = tuple(self.names[i] for i in chosen), self.pixels
        return replace(self, names=names, labels=self.labels[chosen], sha256=digest, pixels=lambda i: pixels(int(chosen[i])))

    def batches(self, preprocess: Preprocess, size: int) -> Iterator[Float32]:
        """Preprocessed images in order, float32 (<= size, 3, S, S)."""
        for start in range(0, len(self), size):
            yield np.stack([preprocess(self.pixels(i)) for i in range(start, min(start + size, len(self)))])


def spread_evenly(size: int, count: int) -> Int64:
    """Ascending positions of `count` of `size` images, from the first to the last; all of them where there are no more."""
    if count >= size:
        return np.arange(size)
    return np.asarray(np.linspace(0, size - 1, count).round().astype(np.int64))


def even_subset(sha256: str, size: int, count: int) -> tuple[Int64, str]:
    """Positions of `count` of `size` images (`spread_evenly`), and the digest of the subset; `sha256` is that of all."""
    if count >= size:
        return np.arange(size), sha256
    positions = spread_evenly(size, count)
    return positions, sha256_bytes(sha256.encode() + positions.tobytes())


def data_digest(images: ImageSet, preprocess: Preprocess) -> str:
    """One digest for images as a network sees them: their content and their preprocessing."""
    return sha256_bytes(f"{images.sha256} {preprocess.sha256}".encode())


def open_images(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """The labelled images at `path`: an IDX image file, a folder of IDX files, a folder per class, or a .csv/.txt list.

    Raises InputError naming the path when it is missing, empty, or its labels are not the checkpoint's.
    """
    if not path.exists():
        raise DataError("images not found", where=path)
    if path.is_dir():
        idx = sorted(p for p in path.iterdir() if re.search(r"images-idx3-ubyte(\.gz)?$", p.name))
        if len(idx) > 1:
            raise DataError(
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
        raise DataError("images not found", where=path)
    idx = sorted(p for p in (path.iterdir() if path.is_dir() else [path]) if re.search(r"idx3-ubyte(\.gz)?$", p.name))
    if len(idx) == 1:
        images = read_idx(idx[0])
        return _from_idx(path, idx[0], images, np.zeros(len(images), np.int64), sha256_bytes(images.tobytes()))
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    return _from_files(path, root, [(image, 0) for image in files if image.suffix.lower() in IMAGE_SUFFIXES])


def open_idx(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """Images of an IDX file `...images-idx3-ubyte[.gz]`, labels from `...labels-idx1-ubyte[.gz]` beside it."""
    label_path = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if label_path == path or not label_path.is_file():
        raise DataError(
            "no label file beside the images",
            where=path,
            found=label_path.name,
            allowed="...images-idx3-ubyte[.gz] with ...labels-idx1-ubyte[.gz]",
        )
    images, classes = read_labelled_idx(path, label_path, labels)
    return _from_idx(path, path, images, classes, sha256_bytes(images.tobytes() + classes.tobytes()))


def _from_idx(source: Path, file: Path, images: Uint8, classes: Int64, sha256: str) -> ImageSet:
    names = tuple(f"{file.name}[{i}]" for i in range(len(images)))
    return ImageSet(str(source), names, classes, sha256, lambda i: images[i, :, :, None])


def open_folder(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """A folder of class folders. A folder's name is a label, a label with other punctuation, or a class index."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
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
    data = read_regular(path, DataError, largest=LARGEST_LIST_BYTES)
    try:
        lines = data.decode("utf-8-sig").splitlines()  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise DataError("list cannot be read", where=path, found=error, allowed="UTF-8 text") from error
    rows = csv.reader(lines) if path.suffix == ".csv" else (line.rsplit(None, 1) for line in lines)
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        header = number == 1 and cells[1:] == ["label"]
        if not any(cells) or cells[0].startswith("#") or header:
            continue
        if len(cells) != 2:
            raise DataError("malformed line", where=f"{path}:{number}", found=row, allowed="an image path and a label")
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
    raise DataError("labels do not match the checkpoint", where=where, found=name, allowed=", ".join(labels))


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", "-", label.casefold())


def _from_files(source: Path, root: Path, entries: list[tuple[Path, int]]) -> ImageSet:
    if not entries:
        raise DataError("no images", where=source, allowed=" ".join(sorted(IMAGE_SUFFIXES)))
    missing = [str(image) for image, _ in entries if not image.is_file()]
    if missing:
        raise DataError("images not found", where=source, found=", ".join(missing[:5]) + f" ({len(missing)} in all)")
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
        raise DataError(
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
