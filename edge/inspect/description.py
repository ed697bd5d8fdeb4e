"""The description of an artifact as text: facts, tables and warnings, rendered with rich."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text


@dataclass(frozen=True)
class Listing:
    """A table: its title, column names, and rows of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Description:
    """The description of an artifact: a title, facts (name -> text), tables, and warnings, which are shown first."""

    title: str
    facts: dict[str, str]
    listings: tuple[Listing, ...] = ()
    warnings: tuple[str, ...] = ()

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> Iterator[Text | Table]:
        """What rich prints. Text that comes from files is never parsed as markup."""
        from rich.table import Table
        from rich.text import Text

        yield Text(self.title, style="bold")
        for warning in self.warnings:
            yield Text(warning, style="bold red")
        facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        facts.add_column(no_wrap=True)
        facts.add_column(overflow="fold")
        for name, text in self.facts.items():
            facts.add_row(Text(name, style="cyan"), Text(text))
        yield facts
        for listing in self.listings:
            yield Text(f"\n{listing.title}", style="bold")
            if not listing.rows:
                continue
            table = Table(box=None, padding=(0, 2, 0, 0))
            for column in listing.columns:
                table.add_column(Text(column), overflow="fold")
            for row in listing.rows:
                table.add_row(*(Text(cell) for cell in row))
            yield table


def size_text(count: int) -> str:
    """A readable size: 54,285,252 bytes (54.3 MB)."""
    return f"{count:,} bytes" + (f" ({count / 1e6:.1f} MB)" if count >= 100_000 else "")


def cut_text(value: object, longest: int) -> str:
    """A value on one line, cut to `longest` characters."""
    line = " ".join(str(value).split())
    return line if len(line) <= longest else f"{line[:longest]}..."
