"""model_comparison.json and the terminal: the numbers are the records', and everything fits in 80 columns."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from gsm8k_core.report.comparison import (
    diagnosis_rows,
    difference,
    make_comparison,
    show_comparison,
    show_scores,
    steps_rows,
    verdict,
)
from gsm8k_core.report.words import bound, bounds
from gsm8k_core.scoring import diagnose
from gsm8k_core.scoring.evaluate import make_record, summarise
from gsm8k_core.scoring.stats import adjusted_difference, cannot_show, difference_interval, smallest_effect
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import Completion, Problem

TEXTS = {
    "right": "2+2 = 4\n#### 4",
    "slip": "2+2 = 5\n#### 5",
    "other": "#### 7",
    "silent": "I do not know.",
    "words": "The answer is **4**.",  # by robust and flexible, not by openai and strict
}


def records(*kinds: str) -> list[dict[str, Any]]:
    found = []
    for number, kind in enumerate(kinds):
        steps = "2+2 = <<2+2=4>>4\n" * (1 + number % 2)
        problem = Problem(f"test-{number}", "How many?", f"{steps}#### 4", "4")
        record = make_record(problem, Completion((1, 2, 3), "length" if kind == "cut" else "stop"), TEXTS[kind])
        found.append(record)
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": "m", "hash": "ab", **summarise(rows, frozenset()), "max_new_tokens": 9}


def compared(base: list[dict[str, Any]], trained: list[dict[str, Any]]) -> dict[str, Any]:
    return make_comparison(summary(base), summary(trained), base, trained)


BASE = records(*["right"] * 2, *["slip"] * 6, *["silent"] * 2, "other", "other")
TRAINED = records("other", *["right"] * 9, "other", "words")


CALCULATED = {"results": 1, "answers": 1, "of": 12}


def with_calculator(*found: Mapping[str, int] | None) -> dict[str, Any]:
    old, new = ({**summary(rows), "calculator": each} for rows, each in zip((BASE, TRAINED), found, strict=True))
    return make_comparison(old, new, BASE, TRAINED)


def said(*arguments: Any) -> str:
    """What the last of the arguments, a function of this terminal and the others, prints."""
    *values, show = arguments
    terminal = Terminal(json_only=False)
    terminal.console = Console(file=io.StringIO(), width=80, highlight=False, soft_wrap=True)
    show(terminal, *values)
    return str(terminal.console.file.getvalue())  # type: ignore[attr-defined]


def test_a_score_with_calculator_is_told_as_one() -> None:
    made = with_calculator(CALCULATED | {"results": 0}, CALCULATED)
    text = said(made, show_comparison)
    assert "base, with calculator" in text
    assert "trained, with calculator" in text
    assert "wrote nothing: no answer holds an expression such as <<48/2= that it reads." in text
    assert "The calculator wrote 1 result, in 1 of 12 answers." in text
    assert verdict(made).startswith("the trained model is better, with calculator: 9 won")
    assert max(map(len, text.splitlines()[:9])) <= 80  # the table
    one = said(made["trained"], made["breakdown"]["trained"], show_scores)
    assert "accuracy, with calculator (95 % interval)" in one
    assert "calculator" not in said(compared(BASE, TRAINED), show_comparison)
    assert "calculator" not in said(with_calculator(None, None), show_comparison)


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_test_problems_in_the_training_data_are_in_the_verdict() -> None:
    met = {"shared": 9, "line": "9 of the 12 test problems are among the 40 questions trained on"}
    made = make_comparison({**summary(BASE)}, {**summary(TRAINED), "overlap": met}, BASE, TRAINED)
    why = "but 9 of these 12 problems are in the training data"
    assert why in made["verdict"] == verdict(made)
    assert made["overlap"] == {"base": None, "trained": met}
    assert why in " ".join(said(made, show_comparison).split())
    assert "but" not in compared(BASE, TRAINED)["verdict"]


def test_of_several_answers_to_a_problem_the_share_that_ended_is_of_the_answers() -> None:
    ended, cut = BASE[0], {**BASE[1], "finish_reason": "length"}
    rows = [{**row, "sample": sample} for row in (ended | {"finish_reason": "stop"}, cut) for sample in range(4)]
    text = said(summary(rows), diagnose.breakdown(rows), show_scores)
    assert "2 problems: 4 answers (50.0 %) ended by themselves" in text


def test_each_rule_has_its_table_its_difference_and_its_interval() -> None:
    made = compared(BASE, TRAINED)
    test = made["paired_by_rule"]["strict"]
    assert (test["won"], test["lost"], test["both"], test["neither"]) == (8, 1, 1, 2)
    assert test["difference"] == pytest.approx(7 / 12)
    assert test["interval"] == list(difference_interval(8, 1, 12))
    assert test["p"] == pytest.approx(2 * 10 / 2**9)
    assert made["paired_by_rule"]["robust"]["won"] == 9
    assert list(made["paired_by_rule"]) == list(made["base"]["rules"])
    for name, each in made["paired_by_rule"].items():
        change = made["trained"]["rules"][name]["accuracy"] - made["base"]["rules"][name]["accuracy"]
        assert each["difference"] == pytest.approx(change)


def test_the_smallest_effect_takes_the_share_of_answers_that_changed() -> None:
    made = compared(BASE, TRAINED)
    changed = made["paired"]["won"] + made["paired"]["lost"]
    assert made["paired"]["smallest_effect"] == smallest_effect(12, changed / 12)
    assert made["paired"] == made["paired"] | made["paired_by_rule"]["flexible"] | {"rule": "flexible"}


def test_where_nothing_changed_all_of_it_is_still_there() -> None:
    made = compared(BASE, BASE)
    assert made["paired"]["interval"] == list(adjusted_difference(0, 0, 12))
    assert made["paired"]["p"] == 1.0
    assert made["paired"]["smallest_effect"] == smallest_effect(12, 1 / 12)
    one = compared(BASE[:1], TRAINED[:1])
    assert one["paired"]["smallest_effect"] is None
    json.dumps([made, one], allow_nan=False)


def test_what_went_wrong_stands_side_by_side() -> None:
    made = compared(BASE, TRAINED)
    rows = {row["category"]: (row["base"], row["trained"]) for row in made["diagnosis"]}
    assert rows["correct"] == (2, 10)
    assert rows["arithmetic slip"] == (6, 0)
    assert rows["no answer"] == (2, 0)
    assert rows["other wrong answer"] == (2, 2)
    assert sum(base for base, _ in rows.values()) == sum(new for _, new in rows.values()) == 12
    assert made["steps"] == [
        {"steps": "1", "n": 6, "base": 1, "trained": 4},
        {"steps": "2", "n": 6, "base": 1, "trained": 6},
    ]
    assert made["breakdown"]["moved"]["arithmetic_slip"]["correct"] == 6


def test_one_model_has_the_same_rows_without_a_second_column() -> None:
    found = diagnose.breakdown(BASE)
    assert diagnosis_rows(found)[0] == {"category": "correct", "base": 2}
    assert steps_rows(found)[1] == {"steps": "2", "n": 6, "base": 1}


def test_the_disagreements_of_both_are_there() -> None:
    made = compared(BASE, TRAINED)
    assert made["base"]["disagreements"]["robust"]["strict"] == 0
    assert made["trained"]["disagreements"]["robust"]["strict"] == 1
    assert ["test-11"] in [split["rows"] for split in made["trained"]["disagreement_rows"]]


def test_a_rule_that_came_later_is_counted() -> None:
    rows = [{**record, "rules": {**record["rules"], "late": {"extracted": "4", "correct": True}}} for record in BASE]
    found = summary(rows)
    assert found["rules"]["late"]["correct"] == 12
    assert found["disagreements"]["late"]["strict"] == 10
    made = make_comparison(found, found, rows, rows)
    assert made["paired_by_rule"]["late"]["both"] == 12
    assert "late" in said(made, show_comparison)
    assert "late" not in summary([*rows[1:], BASE[0]])["rules"]


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_the_verdict_says_which_is_better_and_by_how_much() -> None:
    made = compared(BASE, TRAINED)
    assert verdict(made) == "the trained model is better: 9 won, 1 lost, p = 0.021 by the flexible rule"
    assert difference(made) == "the difference is +66.7 points (95 % interval +19.0 to +95.3)"
    back = compared(TRAINED, BASE)
    assert verdict(back).startswith("the base model is better: 1 won, 9 lost")
    assert difference(back).startswith("the difference is -66.7 points")


@pytest.mark.parametrize("won", range(13))
def test_verdict_and_interval_say_the_same_wherever_they_stand(won: int) -> None:
    base, trained = records(*["slip"] * 12), records(*["right"] * won, *["slip"] * (12 - won))
    made = compared(base, trained)
    shown = won >= 6  # p = 0.03; five won and none lost have p = 0.06
    assert verdict(made).startswith("the trained model is better" if shown else "not distinguishable")
    for test in made["paired_by_rule"].values():
        assert (test["interval"][0] > 0) == (test["p"] < 0.05)
    for text in (difference(made), f"interval {bounds(made['paired']['interval'])}"):
        low = text.partition("interval ")[2].split()[0].lstrip("+").replace("\N{MINUS SIGN}", "-")
        assert (float(low) > 0) == shown, text


def test_no_bound_of_a_difference_becomes_a_zero_that_is_none() -> None:
    assert bounds((0.0002, 0.094)) == "0.02 to 9.4"
    assert bounds((-0.0312, -0.00004)) == "\N{MINUS SIGN}3.1 to \N{MINUS SIGN}0.004"
    assert bounds((0.0, 0.25)) == "0.0 to 25.0"
    assert bound(-0.0, "+") == bound(1e-12, "+") == "+0.0"


def test_what_these_problems_cannot_show_is_said_where_they_show_nothing() -> None:
    assert "cannot show" not in said(compared(BASE, TRAINED), show_comparison)
    none = said(compared(BASE, BASE), show_comparison)
    assert "not distinguishable at n = 12" in none
    assert cannot_show(12, 1 / 12) == cannot_show(12)  # which was said before the run
    assert "cannot show" not in none
    many = BASE * 20
    some = [{**record, "id": f"test-{n}"} for n, record in enumerate(many)]
    other = [{**record, "id": f"test-{n}"} for n, record in enumerate([*TRAINED[:1], *many[1:]])]
    assert cannot_show(240, 1 / 240) in said(compared(some, other), show_comparison)


def test_it_fits_in_80_columns_and_leaves_out_what_never_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    late = {"late-by-far": {"extracted": None, "correct": False}}
    sides = [[{**record, "rules": record["rules"] | late} for record in rows] for rows in (BASE, TRAINED)]
    made = make_comparison(*map(summary, sides), *sides)
    text = said(made, show_comparison)
    assert max(map(len, text.splitlines()[:9])) <= 80  # the table
    assert "arithmetic slip 6 (50.0 %) 0 (0.0 %)" in " ".join(text.split())
    assert "degenerate" not in text
    assert " 2 6 16.7 % 100.0 % " in " ".join(text.split())
    one = said(summary(TRAINED), diagnose.breakdown(TRAINED), show_scores)
    assert max(map(len, one.splitlines())) <= 80
    assert "Answers that the rule on the left calls right and the one above calls wrong:" in one
    same = BASE[8:10]  # silent
    text = said(summary(same), diagnose.breakdown(same), show_scores)
    assert "The rules give the same verdict on every answer." in text
