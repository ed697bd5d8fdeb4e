"""Labelled images: IDX files, a folder per class, or a list; decoded one by one, refused by name when unreadable.

Every source becomes an `ImageSet`: names, labels (indices into the checkpoint's labels) and the SHA-256 of the content (every
image file's bytes with its label, or the IDX files), whatever the folder is called. Pixels are uint8 (H, W, C) with C = 1 or
3: EXIF orientation applied, palette and CMYK converted to RGB, 16-bit grey scaled to 8 bits, transparency dropped.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from calib.errors import DataError
from calib.files import read_regular, sha256_bytes, sha256_file
from edge.images.idx import MAX_IMAGES, Int64, read_idx_images, read_labelled_idx
from edge.images.picture_file import IMAGE_SUFFIXES, decode, is_hidden, picture_files
from edge.images.preprocess import Preprocess, Tensor, Uint8

_LIST_BYTES = 1 << 28
_DIGITS = 9  # of a class index
_SHOWN = 100  # characters of a hostile cell in a message


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

    def batches(self, preprocess: Preprocess, size: int) -> Iterator[Tensor]:
        """Preprocessed images in order, (<= size, *preprocess.shape)."""
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
        idx = _idx_files(path.iterdir(), r"images-idx3-ubyte(\.gz)?$")
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
    idx = _idx_files(path.iterdir() if path.is_dir() else [path], r"idx3-ubyte(\.gz)?$")
    if len(idx) == 1:
        images = read_idx_images(idx[0])
        return _from_idx(path, idx[0], images, np.zeros(len(images), np.int64), hashlib.sha256(images.data).hexdigest())
    if path.is_dir():
        return _from_files(path, path, [(image, 0) for image in picture_files(path)])
    return _from_files(path, path.parent, [(path, 0)] if path.suffix.lower() in IMAGE_SUFFIXES else [])


def _idx_files(paths: Iterable[Path], pattern: str) -> list[Path]:
    return sorted(p for p in paths if re.search(pattern, p.name) and not p.name.startswith("."))


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
    digest = hashlib.sha256(images.data)
    digest.update(classes.data)
    return _from_idx(path, path, images, classes, digest.hexdigest())


def _from_idx(source: Path, file: Path, images: Uint8, classes: Int64, sha256: str) -> ImageSet:
    names = tuple(f"{file.name}[{i}]" for i in range(len(images)))
    return ImageSet(str(source), names, classes, sha256, lambda i: images[i, :, :, None])


def open_folder(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """A folder of class folders. A folder's name is a label, a label with other punctuation, or a class index."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not is_hidden(p, path))
    if not folders:
        raise DataError(
            "no class folders", where=path, allowed="one folder per class, named as the labels: " + ", ".join(labels)
        )
    entries = [(image, label_index(folder.name, labels, folder)) for folder in folders for image in picture_files(folder)]
    return _from_files(path, path, entries)


def open_list(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """A list file: lines `image,label` (.csv) or `image label` (.txt), image paths relative to the file's folder.

    A first CSV line `file,label` or `path,label` is a header; empty lines and lines that start with # are skipped.
    """
    entries = []
    for number, row in _list_rows(path):
        cells = [cell.strip() for cell in row]
        header = number == 1 and cells[1:] == ["label"]
        if not any(cells) or cells[0].startswith("#") or header:
            continue
        if len(cells) != 2:
            found = str(row)[:_SHOWN]
            raise DataError("malformed line", where=f"{path}:{number}", found=found, allowed="an image path and a label")
        entries.append((path.parent / cells[0], label_index(cells[1], labels, f"{path}:{number}")))
    return _from_files(path, path.parent, entries)


def _list_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line of a list. Raises DataError for a file that is too large or not such a text."""
    number = 0
    try:
        text = read_regular(path, DataError, largest=_LIST_BYTES).decode("utf-8-sig")  # spreadsheets write a byte order mark
        lines = text.splitlines()
        if len(lines) > 2 * MAX_IMAGES:
            raise ValueError(f"{len(lines):,} lines")
        rows = csv.reader(lines) if path.suffix == ".csv" else (line.rsplit(None, 1) for line in lines)
        for number, row in enumerate(rows, start=1):
            yield number, row
    except (OSError, ValueError, csv.Error) as error:
        where = f"{path}:{number + 1}" if number else path
        raise DataError(
            "list cannot be read", where=where, found=error, allowed=f"UTF-8 text, at most {MAX_IMAGES:,} images"
        ) from error


def label_index(name: str, labels: tuple[str, ...], where: object) -> int:
    """Index of a label written exactly, with other punctuation or case (`t-shirt_top` for `T-shirt/top`), or as an index."""
    exact, spellings = _label_positions(labels)
    index = exact.get(name, spellings.get(_plain(name)))
    if index is None and name.isdecimal() and len(name) <= _DIGITS and int(name) < len(labels):
        index = int(name)
    if index is None:
        raise DataError("labels do not match the checkpoint", where=where, found=name[:_SHOWN], allowed=", ".join(labels))
    return index


@lru_cache(maxsize=4)
def _label_positions(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Positions of the labels as they are written, and of those whose plain spelling no other label shares."""
    plain = [_plain(label) for label in labels]
    times = Counter(plain)
    spellings = {spelling: index for index, spelling in enumerate(plain) if times[spelling] == 1}
    return {label: index for index, label in reversed([*enumerate(labels)])}, spellings


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", "-", label.casefold())


def _from_files(source: Path, root: Path, entries: list[tuple[Path, int]]) -> ImageSet:
    if not entries:
        raise DataError("no images", where=source, allowed=" ".join(sorted(IMAGE_SUFFIXES)))
    if len(entries) > MAX_IMAGES:
        raise DataError("too many images", where=source, found=f"{len(entries):,}", allowed=f"at most {MAX_IMAGES:,}")
    missing = [str(image)[:_SHOWN] for image, _ in entries if not _is_file(image)]
    if missing:
        raise DataError("images not found", where=source, found=", ".join(missing[:5]) + f" ({len(missing)} in all)")
    names = tuple(str(image.relative_to(root)) if image.is_relative_to(root) else str(image) for image, _ in entries)
    unnamed = next((name for name in names if not _is_text(name)), None)
    if unnamed is not None:
        raise DataError("the name of an image is not UTF-8", where=source, found=ascii(unnamed), next_command="rename the file")
    content = hashlib.sha256()
    for image, label in entries:
        content.update(f"{_file_digest(image)} {label}\n".encode())
    labels = np.array([label for _, label in entries], dtype=np.int64)
    return ImageSet(str(source), names, labels, content.hexdigest(), lambda i: decode(entries[i][0]))


def _is_file(path: Path) -> bool:
    """`Path.is_file`, also false for a name that is too long, holds a NUL, or is in a folder that cannot be searched."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_text(name: str) -> bool:
    """Whether a file name decoded: its undecodable bytes are lone surrogates, which no artifact can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _file_digest(image: Path) -> str:
    try:
        return sha256_file(image)
    except OSError as error:
        raise DataError("image cannot be read", where=image, found=error.strerror) from error
