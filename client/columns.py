"""What columns tables have, side by side: before a federation agrees on some."""

from collections.abc import Mapping

from rich import table as rich_table
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from client.data.table import Table, is_missing, propose_columns

Shares = Mapping[str, Mapping[str, float | None]]
"""Table -> column -> share of rows without a value, None where the table lacks the column."""


def print_columns(tables: Mapping[str, Table], label: str, console: Console) -> None:
    """Print which table has which columns and how complete they are, and a line to propose for ``data.columns``."""
    shares = missing_shares(tables, label)
    shown = rich_table.Table("column", *map(escape, shares), "differs")
    for column in all_columns(shares):
        own = [shares[name][column] for name in shares]
        shown.add_row(Text(column), *(_known(share) for share in own), "not everywhere" if None in own else "")
    console.print(shown)
    console.print(Text(f'columns = "{propose_columns(list(tables.values()), label)}"'), soft_wrap=True)


def missing_shares(tables: Mapping[str, Table], label: str) -> dict[str, dict[str, float | None]]:
    """Return for each table and column that some table has, but for the label, what share of rows lacks a value."""
    columns = list(dict.fromkeys(name for table in tables.values() for name in table.header if name != label))

    def share(table: Table, column: str) -> float | None:
        if column not in table.header:
            return None
        return sum(is_missing(row[column]) for row in table.rows) / max(1, len(table.rows))

    return {site: {column: share(table, column) for column in columns} for site, table in tables.items()}


def all_columns(shares: Shares) -> list[str]:
    return list(next(iter(shares.values()), {}))


def _known(share: float | None) -> str:
    if share is None:
        return "not there"
    return f"{percent(share)} missing" if share else "complete"


def percent(share: float) -> str:
    """Return a share in percent, such that only none is 0% and only all is 100%."""
    return "<1%" if 0 < share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"
