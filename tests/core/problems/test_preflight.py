"""What a length limit costs, and when training refuses."""

from __future__ import annotations

from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.rows import check_context, context_lines, keep_whole, of_sample, rehearsed, summarise
from gsm8k_core.types import DataError, Example, PreflightError, UsageError


def rows(*lengths: int, num_prompt: int = 10) -> list[Example]:
    return [Example(f"row-{n}", tuple(range(length)), num_prompt) for n, length in enumerate(lengths)]


def test_long_rows_and_rows_without_a_label_are_counted() -> None:
    summary = summarise(rows(20, 30, 40), max_length=25)
    assert (summary.rows, summary.longer_than_max_length, summary.without_supervised_token) == (3, 2, 0)
    assert summarise(rows(20, 30, 40), max_length=10).without_supervised_token == 3


def test_the_line_says_all_that_inspect_says() -> None:
    line = summarise(rows(20, 30, 40, num_prompt=28), max_length=25).line()
    assert line.startswith("3; tokens: mean 30.0, p50 30, p95 39, max 40; 2 (66.7 %) longer than --max-length 25")
    assert line.endswith("(cut there, 3 would keep no trained token); suggested: --max-length 64")
    assert "all fit --max-length 512; suggested" in summarise(rows(20, 30), max_length=512).line()


def test_a_prompt_that_fills_the_model_is_refused() -> None:
    check_context([range(7)], 8, 8)
    with pytest.raises(DataError, match="a question of 8 tokens is too long: this model reads 8"):
        check_context([range(3), range(8)], 8, 8)
    with pytest.raises(UsageError, match="--max-new-tokens 9 is too many: this model reads 8; give fewer"):
        check_context([range(7)], 8, 9)
    check_context([range(8)], None, 10**9)


def test_what_is_longer_than_the_model_reads_is_said_in_the_words_that_refuse_it() -> None:
    summary = summarise(rows(20, 30, 40, 60), max_length=50, context=25)
    assert summary.beyond_context == 2  # the longest is left out by its length
    assert of_sample(summary, 400).beyond_context == 200
    answers = {"--eval-max-new-tokens": 25, "eval: --max-new-tokens": 26}
    long, answer, question = context_lines([range(25)], summary, answers)
    assert long.startswith("2 of 4 rows are longer than this model reads, which is 25 tokens")
    assert long.endswith("--max-length 25 leaves these rows out")
    for line, error in ((answer, ([], 25, 26)), (question, ([range(25)], 25, 25))):
        with pytest.raises((DataError, UsageError)) as caught:
            check_context(*error)
        assert line.removeprefix("eval: ") == str(caught.value)
    assert context_lines([range(24)], summarise(rows(20, 25), 512, 25), {"": 25}) == []
    assert context_lines([range(99)], summarise(rows(99), 512), {"": 999}) == []  # nobody knows what it reads


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


def test_rows_that_are_only_rehearsed_are_lost_by_no_limit() -> None:
    def lengths(limit: int) -> list[int]:
        return [len(example.tokens) for example in rehearsed(rows(30, 60, 20), limit)]

    assert lengths(40) == [30, 20]  # as ever, where some fit
    assert lengths(16) == [16, 16, 16]
    assert lengths(8) == [11, 11, 11]  # behind a prompt of 10 one token is left to train


@pytest.mark.parametrize(
    ("recipe", "mix", "warm_start", "trains"),
    [
        ("sft", "auto", "auto", True),
        ("rft", "auto", "auto", True),
        ("rft", "own", "auto", True),  # where a warm start turns out to be needed
        ("rft", "own", "off", False),
        ("grpo", "auto", "auto", False),
    ],
)
def test_a_human_answer_is_trained_or_is_only_a_number(recipe: Any, mix: Any, warm_start: Any, trains: bool) -> None:
    assert TrainConfig(recipe=recipe, mix=mix, warm_start=warm_start).trains_human_answers == trains


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no training rows"):
        summarise([], 512)
