"""Describe any artifact that is a dataclass: a row for every field, a table for every field of several records."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from edge.inspect.description import Description, Listing, size_text

LISTED = 20


def describe_fields(title: str, artifact: Any, *, skip: Collection[str] = (), warnings: tuple[str, ...] = ()) -> Description:
    """Every field of a dataclass but those in `skip`. Units come from the ends of the names."""
    facts, listings = {}, []
    for name, value in field_values(artifact).items():
        if name in skip:
            continue
        records = _records(value)
        if records is None:
            facts[_words(name)] = value_text(name, value)
        else:
            facts[_words(name)] = str(len(value))
            listings += [_table(_words(name), records)] if records else []
    return Description(title, facts, tuple(listings), warnings)


def field_values(artifact: Any) -> dict[str, Any]:
    """Name -> value of the fields of a dataclass, in order."""
    return {field.name: getattr(artifact, field.name) for field in fields(artifact)}


def value_text(name: str, value: Any) -> str:
    """The value of a field of this name, in one line."""
    if value is None or value in ("", (), {}):
        text = "none"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, (int, float)):
        text = _number_text(name, value)
    elif is_dataclass(value):
        text = ", ".join(f"{_words(key)}: {value_text(key, part)}" for key, part in field_values(value).items())
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key}: {value_text(name, part)}" for key, part in sorted(value.items()))
    elif isinstance(value, tuple) and (is_dataclass(value[0]) or isinstance(value[0], tuple)):
        text = f"{len(value)} in all"
    elif isinstance(value, tuple):
        text = ", ".join(value_text(name, part) for part in value[:LISTED]) + " ..." * (len(value) > LISTED)
    else:
        text = str(value)
    return text


def limited(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Listing:
    """A table of the first LISTED rows; its title counts all of them."""
    return Listing(title + (f" ({LISTED} of {len(rows)})" if len(rows) > LISTED else ""), columns, tuple(rows[:LISTED]))


def _records(value: Any) -> list[tuple[str, Any]] | None:
    """(key, dataclass) of a field that holds many, None for any other; the key of a tuple's is ""."""
    if isinstance(value, Mapping):
        items = [(str(key), part) for key, part in value.items()]
    else:
        items = [("", part) for part in value] if isinstance(value, tuple) else []
    return items if items and all(is_dataclass(part) for _, part in items) else None


def _table(title: str, records: Sequence[tuple[str, Any]]) -> Listing:
    names = tuple(field_values(records[0][1]))
    rows = [tuple(value_text(name, value) for name, value in field_values(record).items()) for _, record in records]
    if not records[0][0]:
        return limited(title, tuple(_words(name) for name in names), rows)
    columns = ("name", *(_words(name) for name in names))
    return limited(title, columns, [(key, *row) for (key, _), row in zip(records, rows, strict=True)])


def _number_text(name: str, value: float) -> str:
    if name.endswith("_bytes") or name == "bytes":
        return size_text(int(value))
    number = str(value) if isinstance(value, int) else f"{value:.5g}"
    unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
    return f"{number} {unit}".rstrip()


def _words(name: str) -> str:
    """A field's name as words, without the unit that its value is shown with."""
    ends = ("_bytes", *_UNITS)
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), name).replace("_", " ")


_UNITS = {"_points": "points", "_db": "dB", "_ms": "ms", "_bits": "bits"}
