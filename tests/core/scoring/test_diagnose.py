"""One category per record, the signs beside it, and the counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm8k_core.scoring.diagnose import (
    CATEGORIES,
    Slip,
    breakdown,
    category_rows,
    compare_breakdowns,
    degeneration,
    diagnose,
    diagnosis_json,
    num_steps,
    step_rows,
)
from gsm8k_core.scoring.evaluate import make_record
from gsm8k_core.types import Completion, Problem
from tests.cost import passes

ANSWER = "She sells 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"


def record(text: str, cut: bool = False, answer: str = ANSWER, name: str = "test-0") -> dict[str, Any]:
    problem = Problem(id=name, question="How many?", answer=answer, gold=answer.rpartition(" ")[2])
    return make_record(problem, Completion((1, 2), "length" if cut else "stop"), text)


LOOP = "The answer is 18.\n#### 18\n" * 8
OTHER = "She has 48*2 = 96.\n#### 96"
CASES = [
    ("#### 72", False, "correct", ()),
    ("48/2 = 25 and 48+24 = 72.\n#### 72", False, "correct", ("arithmetic_slip",)),
    ("#### 72\n" * 30, True, "correct", ("degenerate", "cut")),
    ("", False, "degenerate", ("degenerate", "no_answer")),
    (" \n", False, "degenerate", ("degenerate", "no_answer")),
    ("!!!!!!!!", True, "degenerate", ("degenerate", "cut", "no_answer")),
    (LOOP, True, "degenerate", ("degenerate", "cut")),
    ("She has 48 clips and", True, "cut", ("cut",)),
    ("I do not know.", False, "no_answer", ("no_answer",)),
    ("48/2 = 25, so 48+25 = 73.\n#### 73", False, "arithmetic_slip", ("arithmetic_slip",)),
    ("48/2 = 24. 48+24 = 72.\n#### 24", False, "wrong_last_line", ("wrong_last_line",)),
    ("48/2 = 25. 48+24 = 72.\n#### 24", False, "other_wrong", ()),  # no sum came to 24
    ("48+24 = 72. 72/2 = 36.\n#### 36", False, "step_extra", ("step_extra",)),
    ("48/2 = 24. 48+2 = 50.\n#### 50", False, "wrong_number", ("wrong_number",)),
    ("48*2 = 96. 48+96 = 144.\n#### 144", False, "wrong_operation", ("wrong_operation",)),
    ("She sells 48/2 = 24.\n#### 24", False, "step_missing", ("step_missing",)),
    (OTHER, False, "other_wrong", ()),
]


@pytest.mark.parametrize(("text", "cut", "category", "signs"), CASES)
def test_each_record_has_one_category_and_its_signs(
    text: str, cut: bool, category: str, signs: tuple[str, ...]
) -> None:
    found = diagnose(record(text, cut))
    assert (found.category, found.signs) == (category, signs)


def test_every_category_has_a_case() -> None:
    assert {case[2] for case in CASES} == set(CATEGORIES)


def test_a_slip_says_where_it_is_and_what_it_should_be() -> None:
    found = diagnose(record("So 48/2 = 24. Then 48 + 24 = $73 and 1+1 = 3.\n#### 73"))
    assert found.slip == Slip("48 + 24", "73", "72", start=19)
    assert (found.num_slips, found.num_claims) == (2, 3)


@pytest.mark.parametrize("text", ["6/25 = 25%", "6/25*100 = 25%"])
def test_a_wrong_percentage_should_be_a_percentage(text: str) -> None:
    slip = diagnose(record(text)).slip
    assert slip is not None
    assert (slip.stated, slip.should_be) == ("25%", "24%")


def test_a_diagnosis_is_plain_json() -> None:
    assert json.loads(json.dumps(diagnosis_json(record("48/2 = 25\n48+25 = 73\n#### 73")), allow_nan=False)) == {
        "category": "arithmetic_slip",
        "signs": ["arithmetic_slip"],
        "degenerate": None,
        "slip": {"expression": "48/2", "stated": "25", "should_be": "24", "start": 0},
        "num_slips": 1,
        "num_claims": 2,
        "num_steps": 2,
    }


def test_records_of_completions_made_elsewhere_do() -> None:
    rules = {"robust": {"extracted": "24", "correct": False}}
    found = diagnose({"gold": "1,072", "completion": "48+1,024 = 1072. So 24", "rules": rules})
    assert (found.category, found.num_steps) == ("wrong_last_line", None)


@pytest.mark.parametrize(
    ("answer", "steps"),
    [(ANSWER, 2), ("One line.\n\nAnother.\n#### 3", 2), ("#### 3", None), ("3", None), ("", None), (None, None)],
)
def test_steps_are_annotations_or_lines(answer: str | None, steps: int | None) -> None:
    assert num_steps(answer) == steps


# --- degenerate text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("! !\n!", "token_0"),
        ("Great!", None),
        ("1" * 60, "loop"),
        ("1" * 59, None),
        ("She has 18 clips. " * 4 + "She", "loop"),
        ("She has 18 clips. " * 3 + "She", None),
        ("ab" * 300 + "\n#### 18", None),  # one word, and the loop has ended
        ("and so on " * 40 + "until at last she has 18.\n#### 18", "loop"),
        ("#### 48\n" * 20 + "####", "loop"),
        (ANSWER, None),
    ],
)
def test_degenerate_text_is_empty_token_0_or_a_loop(text: str, kind: str | None) -> None:
    assert degeneration(text) == kind


def test_token_0_is_known_by_its_number_whatever_it_looks_like() -> None:
    assert degeneration("", (0, 0, 0)) == "token_0"  # SmolLM2's token 0 is a special one, which has no text
    assert degeneration("0 0", (0, 9, 0)) is None
    assert diagnose(record("") | {"token_ids": [0, 0]}).degenerate == "token_0"


LIMIT = 400.0  # passes of a plain loop over 100 kB: 63 in the dearest unit; a quadratic search takes thousands


@pytest.mark.parametrize(
    "unit", ["!", "a", "ab", "a b ", "1+1=3\n", "(", "=", "<<1=", "#### 1 ", "a" * 999 + "b", "1,", " "]
)
def test_100_kb_of_anything_takes_linear_time(unit: str) -> None:
    one = record("x")
    one["completion"] = unit * (100_000 // len(unit))
    assert passes(lambda: diagnose(one), 100_000, LIMIT) < LIMIT


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.text("0123456789+-*/=() .!#<>$%,\n", max_size=200), st.booleans())
def test_no_completion_raises(text: str, cut: bool) -> None:
    found = diagnose(record(text, cut))
    assert found.category in CATEGORIES
    json.dumps(diagnosis_json(record(text, cut)), allow_nan=False)


# --- counts -------------------------------------------------------------------------------------------------

EASY = "It is 2+2 = <<2+2=4>>4.\n#### 4"
BASE = [record("#### 71", name="a"), record(LOOP, True, name="b"), record("2+2 = 5\n#### 5", answer=EASY, name="c")]
TRAINED = [record("#### 72", name="a"), record(OTHER, name="b"), record("2+2 = 4\n#### 4", answer=EASY, name="c")]


def test_a_breakdown_counts_categories_signs_stops_and_steps() -> None:
    found = breakdown(BASE)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["categories"] == {
        **dict.fromkeys(CATEGORIES, 0),
        "degenerate": 1,
        "arithmetic_slip": 1,
        "other_wrong": 1,
    }
    assert sum(found["categories"].values()) == found["n"] == 3
    named = [name for name in CATEGORIES if name not in ("correct", "other_wrong")]
    assert found["signs"] == dict.fromkeys(named, 0) | {"arithmetic_slip": 1, "cut": 1, "degenerate": 1}
    assert found["degenerate"] == {"empty": 0, "token_0": 0, "loop": 1}
    assert found["claims"] == {"total": 1, "wrong": 1}
    assert (found["stopped"]["count"], found["stopped"]["n"]) == (2, 3)
    assert [(row["steps"], row["count"], row["n"]) for row in found["by_steps"]] == [("1", 0, 1), ("2", 0, 2)]


def test_base_and_trained_stand_side_by_side() -> None:
    found = compare_breakdowns(BASE, TRAINED)
    assert found["base"] == breakdown(BASE)
    assert found["trained"] == breakdown(TRAINED)
    assert found["moved"]["degenerate"]["other_wrong"] == 1
    assert found["moved"]["arithmetic_slip"]["correct"] == 1
    assert sum(count for row in found["moved"].values() for count in row.values()) == 3
    rows = category_rows(found["base"], found["trained"])
    assert rows[0] == ["correct", "0 (0.0 %)", "2 (66.7 %)"]
    assert rows[-1] == ["ended by itself", "2 (66.7 %)", "3 (100.0 %)"]
    assert step_rows(found["base"], found["trained"]) == [["1", "1", "0.0 %", "100.0 %"], ["2", "2", "0.0 %", "50.0 %"]]


def test_many_steps_share_a_row() -> None:
    long = "1+1 = <<1+1=2>>2\n" * 9 + "#### 2"
    assert [row["steps"] for row in breakdown([record("#### 2", answer=long)])["by_steps"]] == ["8 or more"]


def test_an_unknown_ending_is_unknown() -> None:
    found = breakdown([{"gold": "2", "completion": "2", "rules": {"robust": {"extracted": "2", "correct": True}}}])
    assert found["stopped"] == {"n": 0, "count": 0, "rate": None, "interval": None}
    assert found["by_steps"] == []
    assert category_rows(found)[-1] == ["ended by itself", "unknown"]


def test_only_the_same_problems_are_compared() -> None:
    with pytest.raises(ValueError, match="same problems"):
        compare_breakdowns(BASE, TRAINED[::-1])
    with pytest.raises(ValueError, match="at least one"):
        breakdown([])
