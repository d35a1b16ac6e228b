"""Where two rules judge the same completion differently: how often, in which direction, and in which rows.

A row's verdicts split the rules into those that call it right and those that call it wrong. Rows with the same
split are kept together, so each row's name is written once; every cell of the matrix is read from the splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80  # columns of a terminal

Counts = dict[str, dict[str, int]]
Splits = list[dict[str, list[Any]]]


def splits(records: Sequence[Mapping[str, Any]]) -> Splits:
    """[{"right": rules, "wrong": rules, "rows": names}], the most frequent first; rows without dissent are left out."""
    found: dict[tuple[bool, ...], list[Any]] = {}
    names = rules_of(records)
    for record in records:
        verdicts = tuple(bool(record["rules"][name]["correct"]) for name in names)
        if any(verdicts) and not all(verdicts):
            found.setdefault(verdicts, []).append(record["row"] if "row" in record else record["id"])
    return [
        {
            "right": [name for name, correct in zip(names, verdicts, strict=True) if correct],
            "wrong": [name for name, correct in zip(names, verdicts, strict=True) if not correct],
            "rows": rows,
        }
        for verdicts, rows in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def rules_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rules that every record was judged by, in their order."""
    shared = set.intersection(*(set(record["rules"]) for record in records)) if records else set()
    return [name for name in records[0]["rules"] if name in shared] if records else []


def matrix(names: Sequence[str], found: Splits) -> Counts:
    """[a][b]: how many rows rule a calls right and rule b wrong."""
    return {right: {wrong: len(rows_behind(found, right, wrong)) for wrong in names} for right in names}


def rows_behind(found: Splits, right: str, wrong: str) -> list[Any]:
    """The rows that one rule calls right and the other wrong."""
    return [row for split in found if right in split["right"] and wrong in split["wrong"] for row in split["rows"]]


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"disagreements": the matrix, "disagreement_rows": the splits}: what eval and grade write."""
    found = splits(records)
    return {"disagreements": matrix(rules_of(records), found), "disagreement_rows": found}


def table(counts: Counts) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for the terminal: rules by name where that fits in 80 columns, else by number."""
    names = list(counts)
    cells = [["-" if right == wrong else str(counts[right][wrong]) for wrong in names] for right in names]
    columns, labels = names, names
    widest = max(len(cell) for row in cells for cell in row)
    if max(map(len, names)) + sum(2 + max(len(name), widest) for name in names) > WIDTH:
        columns = [str(number) for number in range(1, len(names) + 1)]
        labels = [f"{number} {name}" for number, name in zip(columns, names, strict=True)]
    return ["", *columns], [[label, *row] for label, row in zip(labels, cells, strict=True)]


def agreed(counts: Counts) -> bool:
    """No row is judged differently by any two rules."""
    return not any(count for row in counts.values() for count in row.values())
