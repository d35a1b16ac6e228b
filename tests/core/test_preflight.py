"""What a length limit costs, and when training refuses."""

from __future__ import annotations

import pytest

from gsm8k_core.preflight import keep_whole, summarise
from gsm8k_core.types import DataError, Example, PreflightError


def rows(*lengths: int, num_prompt: int = 10) -> list[Example]:
    return [Example(f"row-{n}", tuple(range(length)), num_prompt) for n, length in enumerate(lengths)]


def test_long_rows_and_rows_without_a_label_are_counted() -> None:
    summary = summarise(rows(20, 30, 40), max_length=25)
    assert (summary.rows, summary.longer_than_max_length, summary.without_supervised_token) == (3, 2, 0)
    assert summarise(rows(20, 30, 40), max_length=10).without_supervised_token == 3


def test_a_long_row_is_left_out_whole() -> None:
    examples = rows(*[20] * 39, 30)
    kept = keep_whole(examples, summarise(examples, 25), drop_long=False)
    assert [len(example.tokens) for example in kept] == [20] * 39


def test_more_than_five_percent_lost_is_refused_unless_asked_for() -> None:
    examples = rows(*[20] * 9, 30)
    summary = summarise(examples, 25)
    with pytest.raises(PreflightError, match=r"lose 10% of the answers.*--drop-long"):
        keep_whole(examples, summary, drop_long=False)
    assert len(keep_whole(examples, summary, drop_long=True)) == 9


def test_nothing_left_is_refused() -> None:
    examples = rows(30, 30)
    with pytest.raises(DataError, match="every row is longer"):
        keep_whole(examples, summarise(examples, 16), drop_long=True)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no training rows"):
        summarise([], 512)
