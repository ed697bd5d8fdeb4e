"""The description of an artifact as text: facts, tables and warnings, rendered with rich."""

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
    """The description of an artifact: a title, facts (name -> text), tables, and warnings, which are shown first."""

    title: str
    facts: dict[str, str]
    listings: tuple[Listing, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def renderable(self) -> Group:
        """For rich's console. Text that comes from files is never parsed as markup."""
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
    """A readable size: 54,285,252 bytes (54.3 MB)."""
    return f"{count:,} bytes" + (f" ({count / 1e6:.1f} MB)" if count >= 100_000 else "")
