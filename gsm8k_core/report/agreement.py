"""Where extraction rules agree: those that give every answer the same verdict stand in one row, and in one cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Groups = list[list[str]]


def group(answers: Sequence[Sequence[Record]], rules: Sequence[str]) -> Groups:
    """The rules in their order, those with equal verdicts on all answers of all models together."""
    found: dict[tuple[bool, ...], list[str]] = {}
    for name in rules:
        verdicts = tuple(bool(record["rules"][name]["correct"]) for records in answers for record in records)
        found.setdefault(verdicts, []).append(name)
    return list(found.values())


def matrix(records: Sequence[Record], groups: Groups) -> list[dict[str, Any]]:
    """How many answers the row's rules count as right and the column's do not."""
    right = [[bool(record["rules"][names[0]]["correct"]) for record in records] for names in groups]
    return [
        {
            "names": names,
            "cells": [
                None if row == column else sum(a and not b for a, b in zip(right[row], right[column], strict=True))
                for column in range(len(groups))
            ],
        }
        for row, names in enumerate(groups)
    ]
