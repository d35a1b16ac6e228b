"""Several answers to a problem: the mean, the vote, pass@k, and an interval that knows they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gsm8k_core.scoring.evaluate import make_record, summarise
from gsm8k_core.scoring.stats import wilson
from gsm8k_core.scoring.tallies import interval, sample_summary, sample_table, voted
from gsm8k_core.types import Completion, Problem


def answers(name: str, numbers: Sequence[object]) -> list[dict[str, Any]]:
    problem = Problem(name, "q", "so\n#### 5", "5")
    return [
        make_record(problem, Completion((1,), "stop"), f"#### {n}" if n is not None else "no", sample)
        for sample, n in enumerate(numbers)
    ]


RECORDS = [*answers("a", [4, 5, "5.0", 4]), *answers("b", [None, 4, None, 5]), *answers("c", [5, 5, 5, 7])]


def test_the_mean_is_over_all_answers() -> None:
    found = summarise(RECORDS, frozenset())
    assert (found["n"], found["samples"], found["answers"]) == (3, 4, 12)
    assert found["rules"]["robust"]["correct"] == 6
    assert found["rules"]["robust"]["accuracy"] == 0.5
    assert found["no_answer"] == 2


def test_the_vote_is_over_numbers_and_a_tie_goes_to_the_first() -> None:
    chosen = voted(RECORDS)
    assert [(each["id"], each["sample"], each["votes"]) for each in chosen] == [("a", 0, 2), ("b", 1, 1), ("c", 0, 3)]
    assert sample_summary(RECORDS)["majority"]["correct"] == 1
    assert sample_summary(RECORDS)["majority"]["interval"] == list(wilson(1, 3))
    assert voted(answers("a", [None, None]))[0] | {"votes": 0} == voted(answers("a", [None, None]))[0]


def test_pass_at_k_is_the_unbiased_mean() -> None:
    found = sample_summary(RECORDS)["pass_at_k"]["robust"]
    # 1 - C(4 - c, k) / C(4, k) with c = 2, 1 and 3 right ones.
    assert found == pytest.approx({"1": 0.5, "2": (5 / 6 + 1 / 2 + 1) / 3, "3": (1 + 3 / 4 + 1) / 3, "4": 1.0})
    assert found["1"] == summarise(RECORDS, frozenset())["rules"]["robust"]["accuracy"]


def test_one_answer_a_problem_is_the_plain_count() -> None:
    single = [*answers("a", [5]), *answers("b", [4])]
    found = summarise(single, frozenset())
    assert "majority" not in found
    assert found["samples"] == 1
    assert found["rules"]["robust"] == {"correct": 1, "accuracy": 0.5, "interval": list(wilson(1, 2)), "version": 2}
    assert voted(single) == single
    assert sample_table(found) is None


def test_answers_that_only_repeat_each_other_are_no_more_problems() -> None:
    alike = interval([4] * 10 + [0] * 10, 4)
    assert alike == pytest.approx(wilson(10, 20), abs=0.01)
    apart = interval([2] * 20, 4)
    assert apart == pytest.approx(wilson(40, 80))
    assert interval([0] * 20, 4) == wilson(0, 20)
    assert interval([4] * 20, 4) == wilson(20, 20)
    assert interval([1], 4) == wilson(0.25, 1)


def test_the_table_shows_powers_of_two_and_the_last() -> None:
    found = sample_table(sample_summary([*answers("a", [5, 4, 4, 4, 4, 4])]))
    assert found is not None
    columns, rows = found
    assert columns == ["6 samples", "strict", "flexible", "robust"]
    assert [row[0] for row in rows] == ["pass@1", "pass@2", "pass@4", "pass@6", "maj@6"]
    assert rows[-1] == ["maj@6", "-", "-", "0.0 %"]


def test_a_row_behind_a_disagreement_names_its_sample() -> None:
    mixed = answers("a", [5, 5])
    mixed[0]["rules"]["strict"]["correct"] = False
    assert summarise(mixed, frozenset())["disagreement_rows"][0]["rows"] == ["a/0"]
