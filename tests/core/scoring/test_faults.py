"""The one change that would mend a wrong answer, held against 269 that were labelled by hand."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.problems.gold import gold_number
from gsm8k_core.scoring.claims import find_claims
from gsm8k_core.scoring.diagnose import CATEGORIES, diagnose, diagnosis_json, wrong_step
from gsm8k_core.scoring.faults import steps_of
from gsm8k_core.scoring.robust import robust
from tests.cost import passes

LABELLED = Path(__file__).with_name("diagnosed.jsonl")
# The demo's model on generated problems (120) and SmolLM2-135M on real ones (87), labelled before the classifier was
# looked at; it agreed on 173 then, and its rules were mended on them. 62 more of the demo's were labelled afterwards:
# it agreed on 58 at first sight, and on 60 after one more rule.
AGREED = {"demo": (112, 120), "real": (83, 87), "fresh": (60, 62)}


def wrong(question: str, answer: str, completion: str) -> dict[str, Any]:
    rules = {"robust": {"extracted": robust(completion), "correct": False}}
    return {
        "question": question,
        "answer": answer,
        "gold": gold_number(answer),
        "completion": completion,
        "rules": rules,
    }


def test_the_labelled_answers_get_their_class_as_often_as_when_it_was_measured() -> None:
    rows = [json.loads(row) for row in LABELLED.read_text(encoding="utf-8").splitlines()]
    agreed: Counter[str] = Counter()
    for row in rows:
        found = diagnose(wrong(row["question"], row["answer"], row["completion"])).category
        agreed[row["from"]] += found == row["label"]
    counts = Counter(row["from"] for row in rows)
    assert {source: (agreed[source], counts[source]) for source in AGREED} == AGREED
    assert {row["label"] for row in rows} >= set(CATEGORIES) - {
        "correct",
        "wrong_last_line",
        "no_answer",
        "cut",
        "degenerate",
    }


TREES = ("The pine is 52 feet tall, the cedar 20. How much taller?", "It is 52-20 = <<52-20=32>>32.\n#### 32")
SHOP = ("4 notebooks for $4 each, a poster for $19?", "4*4 = <<4*4=16>>16\n16+19 = <<16+19=35>>35\n#### 35")
AGES = ("Zoe is 26, Olga 8 years older. Both?", "26+8 = <<26+8=34>>34\n26+34 = <<26+34=60>>60\n#### 60")
BEADS = ("50 beads, keeps 14, 9 friends. Each?", "50-14 = <<50-14=36>>36\n36/9 = <<36/9=4>>4\n#### 4")
CASES = [
    (TREES, "It is 52-20 = 42.\n#### 42", "arithmetic_slip"),
    (TREES, "It is 52+20 = <<52+20=72>>72.\n#### 72", "wrong_operation"),
    (TREES, "It is 52+20 = 62.\n#### 62", "wrong_operation"),  # the sum is wrong as well: mending it helps nothing
    (TREES, "It is 52-20 = 32. 32*2 = 64.\n#### 64", "step_extra"),
    (TREES, "It is 52-2 = 50.\n#### 50", "wrong_number"),
    (TREES, "It is just\n#### 52", "step_missing"),
    (TREES, "It is 2*20 = 40.\n#### 40", "other_wrong"),
    (SHOP, "4*4 = 16\n#### 16", "step_missing"),
    (SHOP, "4+19 = 23\n#### 23", "step_missing"),
    (SHOP, "4*4 = 15. 15+19 = 34\n#### 34", "arithmetic_slip"),
    (SHOP, "4*4 = 15. 15-19 = 4\n#### 4", "other_wrong"),
    (SHOP, "4*4 = 16. 19*2 = 38. 16+38 = 54\n#### 54", "step_extra"),
    (SHOP, "4*4 = 16. 16-19 = -3\n#### -3", "wrong_operation"),
    (SHOP, "4+4 = 8. 8+19 = 27\n#### 27", "wrong_operation"),
    (AGES, "26+8 = 34. 34+8 = 42\n#### 42", "wrong_number"),
    (AGES, "26-8 = 18. 26+18 = 44\n#### 44", "wrong_operation"),
    (AGES, "26-8 = 18. 26-18 = 8\n#### 8", "other_wrong"),  # two changes
    (BEADS, "50/9 = 5.56\n#### 5.56", "step_missing"),
    (BEADS, "50-14 = 36. 36*9 = 324\n#### 324", "wrong_operation"),
    (BEADS, "50-14 = 36. 36/9 = 4. 4+14 = 18\n#### 18", "step_extra"),
]


@pytest.mark.parametrize(("problem", "text", "kind"), CASES)
def test_one_change_that_leads_to_the_gold_names_the_class(problem: tuple[str, str], text: str, kind: str) -> None:
    assert diagnose(wrong(*problem, text)).category == kind


@pytest.mark.parametrize(
    ("problem", "text", "marked"),
    [
        (TREES, "It is 52-20 = 42.\n#### 42", "52-20 = 42"),
        (TREES, "It is 52+20 = $<<52+20=72>>72.\n#### 72", "52+20 = $<<52+20=72>>72"),
        (TREES, "It is 52-20 = 32. 32*2 = 64.\n#### 64", "32*2 = 64"),
        (TREES, "It is 52-20 = 32.\nSo it is\n#### 52\n", "#### 52"),
        (TREES, "It is just\n#### 52", None),
        (SHOP, "4*4 = 16\n#### 16", None),  # what is missing stands nowhere
        (SHOP, "4*4 = 16. 19*2 = 38. 16+38 = 54\n#### 54", "19*2 = 38"),
        (SHOP, "4*4 = 15. 16+19 = 35\n#### 35", "4*4 = 15"),  # right all the same
        (SHOP, "4*4 = 16. 16+19 = 35\n#### 35", None),
        (AGES, "26+8 = 34. 34+8 = 42\n#### 42", "34+8 = 42"),
        (BEADS, "50-14 = 36. 36*9 = 324\n#### 324", "36*9 = 324"),
    ],
)
def test_the_first_wrong_step_is_found_in_the_text(problem: tuple[str, str], text: str, marked: str | None) -> None:
    record = wrong(*problem, text)
    record["rules"]["robust"]["correct"] = record["rules"]["robust"]["extracted"] == record["gold"]
    record["diagnosis"] = diagnosis_json(record)
    found = wrong_step(record)
    assert (found and text[slice(*found)]) == marked


def test_an_answer_without_its_problem_has_no_class_of_its_own() -> None:
    rules = {"robust": {"extracted": "72", "correct": False}}
    assert diagnose({"gold": "32", "completion": "52+20 = 72", "rules": rules}).category == "other_wrong"


def test_a_sum_and_its_annotation_are_one_step() -> None:
    found = steps_of(find_claims("4*4 = $<<4*4=16>>16, and <<2+3=5>>5.\nIt was 9+56 = <<9+9=18>>18"))
    assert [(step.shape, step.numbers, step.stated) for step in found] == [
        ("#*#", (Fraction(4), Fraction(4)), Fraction(16)),
        ("#+#", (Fraction(2), Fraction(3)), Fraction(5)),
        ("#+#", (Fraction(9), Fraction(56)), Fraction(18)),
    ]


LIMIT = 400.0  # as of the whole diagnosis


@pytest.mark.parametrize("unit", ["1+1=2\n", "1+1=2, 2+1=3\n", "<<1+1=2>>2 ", "1+1=3. "])
def test_many_steps_take_linear_time(unit: str) -> None:
    answer = "1+1 = <<1+1=2>>2\n" * 60 + "#### 7"
    one = wrong("1?", answer, unit * (100_000 // len(unit)) + "#### 2")
    assert passes(lambda: diagnose(one), 100_000, LIMIT) < LIMIT
