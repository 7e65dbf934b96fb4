"""A table: drawn in a terminal, lines of tabs elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from streamsink.cli import terminal

LONGEST_CELL = 300
"""Letters of a cell that a terminal shows."""


def show(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    header: bool = True,
    **options: Mapping[str, object],
) -> None:
    """Print a table.

    Parameters
    ----------
    columns : sequence of str
        Their titles.
    rows : sequence of sequence of str
        Their cells.
    header : bool
        Whether lines of tabs begin with the titles.
    **options
        By title, how a terminal draws the column: see ``rich.table.Table.add_column``. Without,
        the first is not wrapped.
    """
    if not terminal.is_terminal():
        for row in (columns, *rows) if header else rows:
            terminal.out("\t".join(terminal.line(cell, None) for cell in row) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, title in enumerate(columns):
        how = options.get(title, {"no_wrap": at == 0})
        table.add_column(Text(terminal.line(title, LONGEST_CELL)), **how)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(terminal.line(cell, LONGEST_CELL)) for cell in row))
    terminal.console().print(table)
