"""A table as text: columns where there is room for them, else a line a cell, so that nothing is cut or left out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = "  "
LEAST = 8  # columns that a first column is folded into
FOLDING = Console(width=80)  # what rich folds a text by; nothing is printed there


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int | None) -> Text:
    """The first column at the left, the others at the right; `room` is None where lines may be of any length."""
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    rest = sum(len(GAP) + width for width in widths[1:])
    if room is not None and rest + min(widths[0], LEAST) > room:
        return Text("\n").join([Text(columns[0], "bold"), *(_listed(columns, row, room) for row in rows)])
    first = widths[0] if room is None else min(widths[0], room - rest)
    head, *body = (_line(row, [first, *widths[1:]]) for row in [columns, *rows])
    head.stylize("bold")
    return Text("\n").join([head, *body])


def _line(row: Sequence[str], widths: Sequence[int]) -> Text:
    """One row; what of its first cell does not fit goes on below."""
    name, *more = Text(row[0]).wrap(FOLDING, widths[0]) or [Text("")]
    padding = " " * (widths[0] - name.cell_len)
    cells = [" " * (width - cell_len(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True)]
    lines = [GAP.join([name.plain + padding, *cells]), *(each.plain for each in more)]
    return Text("\n".join(line.rstrip() for line in lines))


def _listed(columns: Sequence[str], row: Sequence[str], room: int) -> Text:
    """One row: its first cell, and below it each of the others behind its column's name."""
    most = max(map(cell_len, columns[1:]))
    lines = [row[0]]
    for column, cell in zip(columns[1:], row[1:], strict=True):
        aligned = f"{GAP}{column}{' ' * (most - cell_len(column))}{GAP}{cell}"
        if cell:
            lines += [aligned] if cell_len(aligned) <= room else [f"{GAP}{column}", f"{GAP}{GAP}{cell}"]
    return Text("\n".join(lines))
