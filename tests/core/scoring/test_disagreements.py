"""Which rules disagree, in which direction, how often, and in which rows."""

from __future__ import annotations

from typing import Any

from gsm8k_core.scoring.answers import RULES
from gsm8k_core.scoring.tallies import WIDTH, agreed, disagreement_summary, disagreement_table, rows_behind, splits


def record(name: str, **right: bool) -> dict[str, Any]:
    return {"id": name, "rules": {rule: {"extracted": "1", "correct": value} for rule, value in right.items()}}


RECORDS = [
    record("a", strict=True, flexible=True, robust=True),
    record("b", strict=False, flexible=True, robust=True),
    record("c", strict=False, flexible=True, robust=True),
    record("d", strict=True, flexible=False, robust=True),
    record("e", strict=False, flexible=False, robust=False),
]


def test_the_matrix_counts_each_direction_apart() -> None:
    assert disagreement_summary(RECORDS)["disagreements"] == {
        "strict": {"strict": 0, "flexible": 1, "robust": 0},
        "flexible": {"strict": 2, "flexible": 0, "robust": 0},
        "robust": {"strict": 2, "flexible": 1, "robust": 0},
    }


def test_the_rows_behind_a_cell_are_named_and_each_row_is_written_once() -> None:
    found = disagreement_summary(RECORDS)["disagreement_rows"]
    assert found == [
        {"right": ["flexible", "robust"], "wrong": ["strict"], "rows": ["b", "c"]},
        {"right": ["strict", "robust"], "wrong": ["flexible"], "rows": ["d"]},
    ]
    assert rows_behind(found, "robust", "strict") == ["b", "c"]
    assert rows_behind(found, "strict", "robust") == []


def test_a_graded_row_goes_by_its_place_in_the_file() -> None:
    rows = [record("x", strict=True, robust=False) | {"row": "c.jsonl:4"}]
    assert splits(rows)[0]["rows"] == ["c.jsonl:4"]


def test_a_rule_that_judged_only_some_rows_is_left_out() -> None:
    rows = [record("a", strict=True, slow=False), record("b", strict=True)]
    assert disagreement_summary(rows) == {"disagreements": {"strict": {"strict": 0}}, "disagreement_rows": []}
    assert agreed(disagreement_summary(rows)["disagreements"])
    assert disagreement_summary([]) == {"disagreements": {}, "disagreement_rows": []}


def width(columns: list[str], rows: list[list[str]]) -> int:
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    return sum(widths) + 2 * (len(widths) - 1)


def test_the_table_fits_in_80_columns_with_numbers_where_names_do_not() -> None:
    few = {name: dict.fromkeys(RULES, 1319) for name in RULES}
    assert disagreement_table(few)[0] == ["", *RULES]
    assert width(*disagreement_table(few)) <= WIDTH
    narrow = {name: dict.fromkeys(RULES, 7) for name in RULES}
    assert disagreement_table(narrow, 40)[0] == ["", *map(str, range(1, len(RULES) + 1))]
    assert width(*disagreement_table(narrow, 40)) <= 40
    names = [*RULES, "math-verify"]
    many = {name: dict.fromkeys(names, 99_999) for name in names}
    columns, rows = disagreement_table(many)
    assert columns[-1] == "9"
    assert rows[-1][:2] == ["9 math-verify", "99999"]
    assert rows[-1][-1] == "-"
    assert width(columns, rows) <= WIDTH
