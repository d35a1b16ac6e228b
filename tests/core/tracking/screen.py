"""What a terminal shows after it was written to: the codes that this program writes, and a failure for any other."""

from __future__ import annotations

import re

CODE = re.compile(r"\x1b\[(\?25[lh]|[0-9;]*[A-Za-z])")


def screen(written: str, columns: int, rows: int = 1000) -> list[str]:
    """The lines, without spaces at their ends. Raises ValueError for a code that would leave a trace after a kill."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        mark = written[at]
        if found := CODE.match(written, at):
            at = found.end()
            row, column = _obey(found[1], lines, row, column)
            continue
        at += 1
        if mark == "\r":
            column = 0
        elif mark == "\n":
            row, column = row + 1, 0
        else:
            if column == columns:  # broken by the terminal itself
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row].ljust(column)[:column] + mark + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines][-rows:]


def _obey(code: str, lines: list[str], row: int, column: int) -> tuple[int, int]:
    if code.endswith("m"):
        return row, column
    if code == "1A":
        return max(row - 1, 0), column
    if code == "J":
        lines[row] = lines[row][:column]
        del lines[row + 1 :]
        return row, column
    if code == "2K":
        lines[row] = ""
        return row, column
    raise ValueError(f"a code that is not known here: {code!r}")
