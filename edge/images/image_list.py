"""Lists of labelled images: `image,label` (.csv), tab-separated (.tsv) or `image label` (.txt), one image a line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calib.errors import DataError
from calib.files import describe_foreign, read_regular
from edge.images.class_labels import find_label, list_labels, longest_label_words
from edge.images.idx import MAX_IMAGES
from edge.images.picture_file import IMAGE_SUFFIXES

LIST_SUFFIXES = (".csv", ".tsv", ".txt")
_LIST_BYTES = 1 << 28
_SHOWN = 100  # characters of a hostile line in a message
_PATH_COLUMNS = frozenset(
    {"file", "filename", "file_name", "filepath", "file_path", "path", "image", "images", "image_path", "img"}
)
_LABEL_COLUMNS = frozenset({"label", "labels", "class", "class_name", "classname", "target", "category"})


class Entry(NamedTuple):
    """A picture file, the index of its label, and what stated it: a line of a list, or the file itself."""

    image: Path
    label: int
    where: str


def read_list(path: Path, labels: tuple[str, ...]) -> list[Entry]:
    """The entries of a list; image paths are relative to the list's folder.

    A first line of two column names is a header; empty lines and lines that start with # are skipped. In a .txt list the label
    is the longest end of the line that is a label, so that both paths and labels may hold blanks; either may stand in quotes.
    Raises DataError naming file and line.
    """
    entries: list[Entry] = []
    first = True
    for number, row in _rows(path, labels):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#"):
            continue
        where = f"{path}:{number}"
        header, first = first and _is_header(cells, labels), False
        if header:
            continue
        if len(cells) != 2:
            separator = {".csv": "a comma", ".tsv": "a tab", ".txt": "a blank"}[path.suffix.lower()]
            allowed = f"an image path and a label, separated by {separator}"
            raise DataError("malformed line", where=where, found=str(row)[:_SHOWN], allowed=allowed)
        label = find_label(cells[1], labels)
        if label is None:
            raise _label_error(where, cells, labels, in_first_line=not entries, in_text=path.suffix.lower() == ".txt")
        entries.append(Entry(path.parent / cells[0], label, where))
    return entries


def _is_header(cells: list[str], labels: tuple[str, ...]) -> bool:
    """Whether a line holds the names of two columns, and not a file and its label."""
    if len(cells) != 2 or cells[1].casefold() not in _LABEL_COLUMNS:
        return False
    return cells[0].casefold() in _PATH_COLUMNS or find_label(cells[1], labels) is None


def _label_error(where: str, cells: list[str], labels: tuple[str, ...], *, in_first_line: bool, in_text: bool) -> DataError:
    """The error of a line whose second cell is not a label, with the cause where the line shows it."""
    what, found, allowed, command = "labels do not match the network", cells[1][:_SHOWN], list_labels(labels), None
    if Path(cells[1]).suffix.lower() in IMAGE_SUFFIXES and find_label(cells[0], labels) is not None:
        what, found, allowed = "the columns are exchanged", ", ".join(cells)[:_SHOWN], "an image path, then its label"
    elif in_first_line and not any(suffix in cells[0].casefold() for suffix in IMAGE_SUFFIXES):
        what, found = "the first line is neither an image with a label nor a known header", ", ".join(cells)[:_SHOWN]
        allowed, command = f"an image path and one of {allowed}", "remove the line, or name its columns file and label"
    elif in_text:
        command = "correct the label, which ends the line; for labels that hold blanks a .csv list is clearer"
    return DataError(what, where=where, found=found, allowed=allowed, next_command=command)


def _rows(path: Path, labels: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line of a list. Raises DataError for a file that is too large or not such a text."""
    number, suffix = 0, path.suffix.lower()
    try:
        lines = _text(path).splitlines()
        if len(lines) > 2 * MAX_IMAGES:
            raise ValueError(f"{len(lines):,} lines")
        if suffix == ".txt":
            rows: Iterator[list[str]] = (_split_line(line, labels) for line in lines)
        else:
            rows = iter(csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ","))
        for number, row in enumerate(rows, start=1):
            yield number, row
    except (OSError, ValueError, csv.Error) as error:
        where = f"{path}:{number + 1}" if number else path
        raise DataError(
            "list cannot be read", where=where, found=error, allowed=f"UTF-8 text, at most {MAX_IMAGES:,} images"
        ) from error


def _text(path: Path) -> str:
    data = read_regular(path, DataError, largest=_LIST_BYTES)
    try:
        return data.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except ValueError as error:
        raise ValueError(describe_foreign(data) or error) from error


def _split_line(line: str, labels: tuple[str, ...]) -> list[str]:
    """Path and label of a line, split where the longest label begins; at the last blank where none ends the line."""
    for words in range(longest_label_words(labels), 0, -1):
        cells = [_unquoted(cell.strip()) for cell in line.rsplit(None, words)]
        if len(cells) == words + 1 and find_label(_unquoted(" ".join(cells[1:])), labels) is not None:
            return [cells[0], _unquoted(" ".join(cells[1:]))]
    return [_unquoted(cell.strip()) for cell in line.rsplit(None, 1)]


def _unquoted(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] and cell[0] in "\"'" else cell
