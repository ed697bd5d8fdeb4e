"""What is to be said of an artifact, as text: facts, tables, warnings. rich turns it into something to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Listing:
    """A table: its title, column names, and rows of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Description:
    """An artifact in words.

    Attributes:
        title: what it is.
        facts: name -> text.
        listings: tables, in order.
        warnings: what must not be overlooked; shown first.
    """

    title: str
    facts: dict[str, str]
    listings: tuple[Listing, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def renderable(self) -> Group:
        """For rich's console. Names and reasons come from files, so nothing is read as markup."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[Text | Table] = [Text(self.title, style="bold")]
        parts += [Text(warning, style="bold red") for warning in self.warnings]
        facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        facts.add_column(no_wrap=True)
        facts.add_column(overflow="fold")
        for name, text in self.facts.items():
            facts.add_row(Text(name, style="cyan"), Text(text))
        parts.append(facts)
        for listing in self.listings:
            parts.append(Text(f"\n{listing.title}", style="bold"))
            if not listing.rows:
                continue
            table = Table(box=None, padding=(0, 2, 0, 0))
            for column in listing.columns:
                table.add_column(Text(column), overflow="fold")
            for row in listing.rows:
                table.add_row(*(Text(cell) for cell in row))
            parts.append(table)
        return Group(*parts)


def size_text(count: int) -> str:
    """Bytes as a person reads them: 54,285,252 bytes (54.3 MB)."""
    return f"{count:,} bytes" + (f" ({count / 1e6:.1f} MB)" if count >= 100_000 else "")
