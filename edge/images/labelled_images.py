"""Labelled images: IDX files, a folder per class, or a list; decoded one by one, refused by name when unreadable.

Every source becomes an `ImageSet`: names, labels (indices into the checkpoint's labels) and the SHA-256 of the content (every
image file's bytes with its label, or the IDX files), whatever the folder is called. Pixels are uint8 (H, W, C) with C = 1 or
3: EXIF orientation applied, palette and CMYK converted to RGB, 16-bit grey scaled to 8 bits, transparency dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calib.errors import DataError
from calib.files import sha256_bytes, sha256_file
from edge.images.class_labels import label_index
from edge.images.idx import MAX_IMAGES, Int64, read_idx_images, read_labelled_idx
from edge.images.image_list import LIST_SUFFIXES, Entry, read_list
from edge.images.picture_file import IMAGE_SUFFIXES, decode, is_hidden, picture_files
from edge.images.preprocess import Preprocess, Tensor, Uint8

_SHOWN = 100  # characters of a hostile name in a message
_COPIES_SHOWN = 3


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    Attributes:
        source: where they come from, as given.
        names: one name per image: a path, or `file[index]`.
        labels: int64 (n,), indices into the checkpoint's labels.
        sha256: digest of the content, labels included.
        pixels: position in `names` -> uint8 (H, W, C).
        notes: what was left out of the set, a sentence each.
    """

    source: str
    names: tuple[str, ...]
    labels: Int64
    sha256: str
    pixels: Callable[[int], Uint8]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def take(self, count: int) -> ImageSet:
        """`count` images spread evenly over the set (all of them when there are fewer): the same ones every time."""
        return self.at(*even_subset(self.sha256, len(self), count))

    def at(self, chosen: Int64, sha256: str) -> ImageSet:
        """The images at these positions, whose digest is `sha256`."""
        names, pixels = tuple(self.names[i] for i in chosen), self.pixels
        return replace(self, names=names, labels=self.labels[chosen], sha256=sha256, pixels=lambda i: pixels(int(chosen[i])))

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
    """The labelled images at `path`: an IDX image file, a folder of IDX files, a folder per class, or a list.

    Raises InputError naming the path when it is missing, empty, or its labels are not the checkpoint's.
    """
    if not path.exists():
        raise DataError("images not found", where=path)
    if path.is_dir():
        idx = _idx_files(path.iterdir(), r"images[-.]idx3-ubyte(\.gz)?$")
        if len(idx) > 1:
            raise DataError(
                "several IDX image files in the folder", where=path, found=", ".join(p.name for p in idx), allowed="name one"
            )
        return open_idx(idx[0], labels) if idx else open_folder(path, labels)
    if path.suffix.lower() in LIST_SUFFIXES:
        return open_list(path, labels)
    return open_idx(path, labels)


def has_labels(path: Path) -> bool:
    """Whether `open_images` finds labels with the pictures at `path`: a folder, a list, or an IDX file with one of labels."""
    label_file = _label_file(path)
    return path.is_dir() or path.suffix.lower() in LIST_SUFFIXES or (label_file != path and label_file.is_file())


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
        return _from_files(path, path, [Entry(image, 0, str(image)) for image in picture_files(path)])
    return _from_files(path, path.parent, [Entry(path, 0, str(path))] if path.suffix.lower() in IMAGE_SUFFIXES else [])


def _idx_files(paths: Iterable[Path], pattern: str) -> list[Path]:
    return sorted(p for p in paths if re.search(pattern, p.name) and not p.name.startswith("."))


def open_idx(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """Images of an IDX file `...images-idx3-ubyte[.gz]`, labels from `...labels-idx1-ubyte[.gz]` beside it."""
    label_path = _label_file(path)
    if label_path == path:
        raise DataError(
            "not labelled images",
            where=path,
            found=f"a file {path.suffix}" if path.suffix else "a file without a suffix",
            allowed=f"a folder per class, a list ({' '.join(LIST_SUFFIXES)}), or an IDX file ...images-idx3-ubyte[.gz]",
        )
    if not label_path.is_file():
        allowed = "...images-idx3-ubyte[.gz] with ...labels-idx1-ubyte[.gz]"
        raise DataError("no label file beside the images", where=path, found=label_path.name, allowed=allowed)
    images, classes = read_labelled_idx(path, label_path, labels)
    digest = hashlib.sha256(images.data)
    digest.update(classes.data)
    return _from_idx(path, path, images, classes, digest.hexdigest())


def _label_file(images: Path) -> Path:
    """Where the labels of an IDX file of images are expected; `images` itself where it is not named as one."""
    return images.with_name(re.sub(r"images([-.])idx3", r"labels\1idx1", images.name))


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
    classes = [(folder, label_index(folder.name, labels, folder)) for folder in folders]
    entries = [Entry(image, label, str(image)) for folder, label in classes for image in picture_files(folder)]
    return _from_files(path, path, entries)


def open_list(path: Path, labels: tuple[str, ...]) -> ImageSet:
    """The images of a list, see `edge.images.image_list.read_list`."""
    return _from_files(path, path.parent, read_list(path, labels))


def _from_files(source: Path, root: Path, entries: list[Entry]) -> ImageSet:
    if not entries:
        raise DataError("no images", where=source, allowed=" ".join(sorted(IMAGE_SUFFIXES)))
    if len(entries) > MAX_IMAGES:
        raise DataError("too many images", where=source, found=f"{len(entries):,}", allowed=f"at most {MAX_IMAGES:,}")
    missing = [str(entry.image)[:_SHOWN] for entry in entries if not _is_file(entry.image)]
    if missing:
        raise DataError("images not found", where=source, found=", ".join(missing[:5]) + f" ({len(missing)} in all)")
    unnamed = next((name for name in (_name(entry.image, root) for entry in entries) if not _is_text(name)), None)
    if unnamed is not None:
        raise DataError("the name of an image is not UTF-8", where=source, found=ascii(unnamed), next_command="rename the file")
    unique, notes = _without_copies(entries, root)
    content = hashlib.sha256()
    for digest, entry in unique.items():
        content.update(f"{digest} {entry.label}\n".encode())
    labels = np.array([entry.label for entry in unique.values()], dtype=np.int64)
    images = tuple(entry.image for entry in unique.values())
    names = tuple(_name(image, root) for image in images)
    return ImageSet(str(source), names, labels, content.hexdigest(), lambda i: decode(images[i]), notes)


def _without_copies(entries: list[Entry], root: Path) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """Digest -> the first entry of each content, in order, and a note on the others: a copy adds no evidence.

    Raises DataError for copies of one picture under different labels.
    """
    unique: dict[str, Entry] = {}
    copies: list[tuple[Entry, Entry]] = []
    digests: dict[Path, str] = {}
    for entry in entries:
        digest = digests.get(entry.image) or digests.setdefault(entry.image, _file_digest(entry.image))
        first = unique.setdefault(digest, entry)
        if first is not entry:
            copies.append((entry, first))
    if not copies:
        return unique, ()
    for entry, first in copies:
        if entry.label != first.label:
            raise DataError(
                "one picture with two labels",
                where=entry.where,
                found=f"class {entry.label} here, class {first.label} at {first.where}",
                allowed="one label for each picture, whatever its files are called",
                next_command="correct or remove one of the two, then run again",
            )
    shown = ", ".join(f"{_name(entry.image, root)} = {_name(first.image, root)}" for entry, first in copies[:_COPIES_SHOWN])
    more = ", ..." if len(copies) > _COPIES_SHOWN else ""
    return unique, (f"copies counted once: {len(copies)} of {len(entries)} images ({shown}{more})",)


def _name(image: Path, root: Path) -> str:
    return str(image.relative_to(root)) if image.is_relative_to(root) else str(image)


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
