"""The robust rule: what it reads where, and that it compares exactly."""

from __future__ import annotations

import pytest

from gsm8k_core.scoring.answers import RULES, grade


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
        ("5\u00b2", "5"),
        ("1.50 dollars", "1.5"),
        ("\u0663 or \u00b2 or \uff13", None),
        ("no number", None),
    ],
)
def test_robust_falls_back_to_the_last_number_in_ascii_digits(completion: str, number: str | None) -> None:
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
