"""The robust rule: what it reads where, that it compares exactly, and that version 1 stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsm8k_core.scoring.answers import OLDER, RULES, grade
from tests.core.scoring.answer_lines import LINES


def extracted(rule: str, completion: str) -> str | None:
    return RULES[rule].extract(completion)


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("#### \u22125", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### -0.0", "0"),
        ("#### 0018", "18"),
        ("#### .5", "0.5"),
        ("#### 50%", "50"),
        ("#### \\(18\\)", "18"),
        ("##### 18", "18"),
        ("#### 18\n#### Note", "18"),
        ("answer: 7\n#### 18", "18"),
        ("#### 18 \\boxed{7}", "18"),
        ("#### 1. Count the eggs\nShe has 16 - 3 = 13 of them.", "13"),
        ("#### Step 1\nThe answer is 7.", "7"),
    ],
)
def test_robust_reads_the_last_mark_that_has_a_number(completion: str, number: str) -> None:
    assert extracted("robust", completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("\\boxed{18} after 3 days", "18"),
        ("\\boxed{7} no, \\boxed{18} after 3 days", "18"),
        ("\\boxed{\\$1{,}234\\text{ a day}} or 3", "1234"),
        ("\\boxed{\\text{a {nested {18}} box}} or 3", "18"),
        ("\\boxed{x = 9 \\times 2 = 18} or 3", "18"),
        ("\\boxed{18} or \\boxed{19", "18"),
        ("\\boxed{\\boxed{18}} or 3", "18"),
        ("\\boxed{18} or \\boxed{none} or 3", "18"),
        ("\\boxed{18} or \\boxed{1, 2} or 3", "18"),
        ("the answer is 7: \\boxed{18}", "18"),
    ],
)
def test_robust_reads_the_last_closed_box_that_has_one_number(completion: str, number: str) -> None:
    assert extracted("robust", completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("The answer is 18. It took 3 steps.", "18"),
        ("The answer is: **$18** for 3 days", "18"),
        ("**Final Answer:**\n\n18 eggs in 3 days", "18"),
        ("ANSWER IS 18 in 3 days", "18"),
        ("The answer is that she makes $18 in 3 days", "18"),
        ("The answer is 9 * 2 = 18 in 3 days", "18"),
        ("The answer is 18. 3 + 4 = 7 was a step.", "18"),
        ("The answer is -5 after 3 days", "-5"),
        ("The answer is 7. No, the answer is 18 in 3 days", "18"),
        ("The answer is 7. Is the answer isolated? 3", "7"),
    ],
)
def test_robust_reads_the_number_after_the_last_answer_is(completion: str, number: str) -> None:
    assert extracted("robust", completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("so x = -5", "-5"),
        ("- 18 eggs", "18"),
        ("x-5", "5"),
        ("5\u00b2", "25"),
        ("1.50 dollars", "1.5"),
        ("\u0663 or \u00b2 or \uff13", "3"),
        ("no number", None),
    ],
)
def test_robust_falls_back_to_the_last_number(completion: str, number: str | None) -> None:
    assert extracted("robust", completion) == number


@pytest.mark.parametrize("completion", ["#### {}", "\\boxed{{{}}}", "the answer is {}", "{}"])
def test_robust_reads_forty_digits_and_passes_over_forty_one(completion: str) -> None:
    assert extracted("robust", "7 eggs, " + completion.format("9" * 40)) == "9" * 40
    assert extracted("robust", "7 eggs, " + completion.format("9" * 41)) == "7"


def test_robust_compares_forty_digits_exactly_where_floats_are_equal() -> None:
    gold = "#### 1" + "0" * 38
    assert grade("#### 1" + "0" * 38, gold)["robust"].correct
    assert not grade("#### 1" + "0" * 37 + "1", gold)["robust"].correct
    assert float("1" + "0" * 38) == float("1" + "0" * 37 + "1")


def test_robust_does_not_take_a_percentage_for_its_hundredth() -> None:
    assert not grade("#### 50%", "#### 0.5")["robust"].correct
    assert not grade("#### 0.5", "#### 50")["robust"].correct


# --- labelled lines -------------------------------------------------------------------------------------------

GIVEN = Path(__file__).with_name("given_verdicts.jsonl")  # labelled by others: completion, gold, right or not
LEAST = 350
V1_READS = 159  # of the same lines, as it did when they were labelled


@pytest.mark.parametrize("kind", LINES)
def test_what_models_end_in_is_read_as_it_was_labelled(kind: str) -> None:
    assert [(completion, extracted("robust", completion)) for completion, _ in LINES[kind]] == LINES[kind]


def test_the_verdicts_that_others_gave_are_ours() -> None:
    rows = [json.loads(row) for row in GIVEN.read_text(encoding="utf-8").splitlines()]
    judged = {row["id"]: grade(row["completion"], str(row["gold"]))["robust"].correct for row in rows}
    assert judged == {row["id"]: row["right"] for row in rows}


def test_there_are_enough_lines_and_version_1_reads_fewer() -> None:
    lines = [line for kind in LINES.values() for line in kind]
    assert len({completion for completion, _ in lines}) >= LEAST
    assert sum(OLDER["robust-v1"].extract(completion) == number for completion, number in lines) == V1_READS


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [("#### 1/3", "0.3333", False), ("#### 2/6 * 3 = 1", "1", True), ("\\boxed{\\frac{36}{2}}", "18", True)],
)
def test_fractions_are_compared_exactly(completion: str, gold: str, right: bool) -> None:
    assert grade(completion, gold)["robust"].correct == right


def test_sums_and_labels_keep_what_version_1_read() -> None:
    """Lines on which a more eager reading would lose what the first version had: no sum without an equals sign."""
    for completion in (
        "Answer: **25** cups - 3 for each",
        "The answer is 15 gallons",
        "James earned 24 answers * 2 points/answer = <<24*2=48>>48 points.\nSo the total is 66",
        "Week 3:210 pages",
        "She puts $2,756 in her account",
        "#### 1,5",
        "#### 15,00",
        "so 5-3 = <<5-3=2>>2:00 pm is the latest",
    ):
        assert extracted("robust", completion) == OLDER["robust-v1"].extract(completion), completion
