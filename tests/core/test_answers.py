"""Extraction: what each rule reads, right or wrong, and that nothing a model writes can stop or slow it."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsm8k_core.answers import HEADLINE, RULES, Verdict, gold_number, grade
from gsm8k_core.types import DataError

GOLD = "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
RIGHT, WRONG = True, False


def extracted(rule: str, completion: str) -> str | None:
    return RULES[rule].extract(completion)


def correct(completion: str, answer: str) -> dict[str, bool]:
    return {rule: verdict.correct for rule, verdict in grade(completion, answer).items()}


def verdicts(openai: bool, strict: bool, flexible: bool, robust: bool) -> dict[str, bool]:
    return {"openai": openai, "strict": strict, "flexible": flexible, "robust": robust}


# --- the rules side by side ---------------------------------------------------------------------------------


def test_the_rules_stand_in_their_order_under_their_own_names() -> None:
    assert [(name, rule.name, rule.version) for name, rule in RULES.items()] == [
        ("openai", "openai", 1),
        ("strict", "strict", 3),
        ("flexible", "flexible", 3),
        ("robust", "robust", 1),
    ]
    assert HEADLINE == ("strict", "flexible", "robust")


def test_grade_gives_every_rule_what_it_found_and_whether_it_is_right() -> None:
    assert grade("#### 18.", GOLD) == {
        "openai": Verdict("18.", correct=False),
        "strict": Verdict("18.", correct=True),
        "flexible": Verdict("18.", correct=True),
        "robust": Verdict("18", correct=True),
    }


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("#### 18", verdicts(RIGHT, RIGHT, RIGHT, RIGHT)),
        ("#### 19", verdicts(WRONG, WRONG, WRONG, WRONG)),
        ("", verdicts(WRONG, WRONG, WRONG, WRONG)),
        ("!!!!!!!!", verdicts(WRONG, WRONG, WRONG, WRONG)),
        ("#### $18", verdicts(WRONG, WRONG, RIGHT, RIGHT)),
        ("####18", verdicts(WRONG, WRONG, RIGHT, RIGHT)),
        ("#### **18**", verdicts(WRONG, WRONG, RIGHT, RIGHT)),
        ("#### 18.", verdicts(WRONG, RIGHT, RIGHT, RIGHT)),
        ("#### 18.00", verdicts(WRONG, WRONG, WRONG, RIGHT)),
        ("#### 18 eggs", verdicts(RIGHT, RIGHT, RIGHT, RIGHT)),
        ("#### 9 * 2 = $18", verdicts(WRONG, WRONG, RIGHT, RIGHT)),
        ("The answer is 18", verdicts(WRONG, WRONG, RIGHT, RIGHT)),
        ("**18**. Hope this helps...", verdicts(WRONG, WRONG, WRONG, RIGHT)),
        ("The answer is 18 (see step 2).", verdicts(WRONG, WRONG, WRONG, RIGHT)),
        ("#### 18\n#### 19", verdicts(RIGHT, RIGHT, WRONG, WRONG)),
        ("#### 1800", verdicts(WRONG, WRONG, WRONG, WRONG)),
    ],
)
def test_each_rule_keeps_its_own_virtues_and_failures(completion: str, expected: dict[str, bool]) -> None:
    assert correct(completion, GOLD) == expected


@pytest.mark.parametrize(
    ("completion", "flexible", "robust"),
    [
        ("**18**. Hope this helps...", "...", "18"),
        ("at 3:00 pm", "00", "3"),
        ("10-15", "-15", "15"),
        ("18 eggs (see step 2)", "2", "2"),
        ("1e400", "400", "400"),
        ("from 1 to -$5.", "-$5.", "-5"),
        ("7 ...", "...", "7"),
        ("a single . or $ or ,", None, None),
        ("$1,234.50", "$1,234.50", "1234.5"),
    ],
)
def test_what_flexible_and_robust_read_where_nothing_marks_the_answer(
    completion: str, flexible: str | None, robust: str | None
) -> None:
    assert extracted("flexible", completion) == flexible
    assert extracted("robust", completion) == robust


@pytest.mark.parametrize(
    ("completion", "answer"),
    [("#### 1234", "1,234"), ("#### 1,234", "1234"), ("#### -3", "-3"), ("#### 2.5", "2.5")],
)
def test_commas_signs_and_decimals_count_alike_on_both_sides(completion: str, answer: str) -> None:
    assert correct(completion, answer) == verdicts(RIGHT, RIGHT, RIGHT, RIGHT)


def test_strict_takes_the_first_mark_and_flexible_the_last_number() -> None:
    text = "#### 18\nQuestion: more?\n#### 7"
    assert extracted("strict", text) == "18"
    assert extracted("flexible", text) == "7"


# --- robust -------------------------------------------------------------------------------------------------


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


# --- gold answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("steps\n#### 18", "18"),
        ("steps\n#### 1,234,567", "1234567"),
        ("steps\n#### $-3", "-3"),
        ("steps\n#### -$3", "-3"),
        ("steps\n#### 18.50", "18.5"),
        ("steps\n#### 18.", "18"),
        ("steps\r\n#### 18\r\n", "18"),
        ("#### " + "9" * 40, "9" * 40),
    ],
)
def test_gold_number_is_a_plain_decimal(answer: str, number: str) -> None:
    assert gold_number(answer) == number


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("18", "no '####'"),
        ("", "no '####'"),
        ("#### 17\n#### 18", "2 '####'"),
        ("####18", "no space after '####'"),
        ("#### ", "no plain number"),
        ("#### eighteen", "no plain number"),
        ("#### 18 eggs", "no plain number"),
        ("####  18", "no plain number"),
        ("#### 1,5", "no plain number"),
        ("#### 1e400", "no plain number"),
        ("#### 1/2", "no plain number"),
        ("#### nan", "no plain number"),
        ("#### \u0661\u0668", "no plain number"),
        ("#### \u00b2", "no plain number"),
        ("#### \u22123", "no plain number"),
        ("#### 18\x00", "no plain number"),
        ("#### " + "9" * 41, "more than 40 digits"),
        ("#### 0." + "9" * 5000, "more than 40 digits"),
    ],
)
def test_a_gold_that_no_rule_could_match_is_refused_with_its_reason(answer: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        gold_number(answer)
    assert len(str(caught.value)) < 200


def test_a_refused_gold_cannot_write_to_the_terminal() -> None:
    with pytest.raises(DataError) as caught:
        gold_number("#### \x1b[2J\ud800")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("answer", ["18", "$18", "18.", "steps\n#### 18", "steps\n#### 18\n"])
def test_grade_takes_an_answer_text_or_a_plain_number(answer: str) -> None:
    assert correct("#### 18", answer)["robust"]
    assert correct("#### 18", answer)["strict"]
    assert not any(correct("#### 19", answer).values())


@pytest.mark.parametrize("answer", ["eighteen", "", "1e400", "#### 1\n#### 2"])
def test_grade_refuses_an_answer_without_a_number(answer: str) -> None:
    with pytest.raises(DataError):
        grade("#### 18", answer)


# --- hostile completions ------------------------------------------------------------------------------------

HOSTILE = ("\ud800", "\x00", "\u00b2", "\u0661", "####", "\\boxed{", "}", "answer is ", "-", "$", ".", "1")


def test_no_string_makes_a_rule_raise() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        completion = "".join(rng.choices(HOSTILE, k=rng.randrange(12)))
        grade(completion, "18")


SIZE = 100_000
PATTERNS = (
    "1", "1,", "1.", "1 ", "1/", "-1", "-", "$", ".", "#", "####", "#### ", "####-", "####1/2 ", "#### 1. a ",
    "####1=", "\\boxed{", "\\boxed{}", "\\boxed{{", "\\boxed{1 2}", "{", "}", "{}", "answer is ", "answer ",
    "answer:1/2 ", "=", "1=", "(", " ", "\n", "9" * 41 + " ", "#### " + "9" * 41 + " ", "\u00b2", "\x00",
)  # fmt: skip
STARTS = ("", "#### ", "\\boxed{", "answer is ")
ENDS = ("", " 7", "/7}")


def hostile_texts(size: int) -> Iterator[str]:
    for pattern in PATTERNS:
        body = (pattern * (size // len(pattern) + 1))[:size]
        yield from (start + body for start in STARTS)
        yield from (body + end for end in ENDS)


def seconds(read: Callable[[str], object], text: str) -> float:
    start = time.perf_counter()
    read(text)
    return time.perf_counter() - start


def graded(text: str) -> object:
    return grade(text, "18")


LIMIT = 0.1  # seconds at a tenth of the size: the rules took 0.004 at most, the pattern below 1.0


def test_no_hostile_text_takes_quadratic_time() -> None:
    texts = hostile_texts(SIZE // 10)
    slow = [text[:40] for text in texts if seconds(graded, text) > LIMIT and seconds(graded, text) > LIMIT]
    assert slow == []


def test_a_quadratic_pattern_breaks_the_time_limit() -> None:
    assert seconds(re.compile(r"[0-9]+?%").findall, "1" * (SIZE // 10)) > LIMIT


@pytest.mark.parametrize("pattern", ["1", "1,", "\\boxed{", "#### ", "answer is ", "-", "$"])
def test_a_hundred_kilobytes_are_graded_within_a_second(pattern: str) -> None:
    assert seconds(graded, pattern * (SIZE // len(pattern))) < 1.0


# --- the real data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_answers(gsm8k_data: Path) -> dict[str, list[str]]:
    folder = gsm8k_data
    return {
        split: [json.loads(row)["answer"] for row in (folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "test")
    }


def test_every_real_gold_is_an_integer(real_answers: dict[str, list[str]]) -> None:
    golds = {split: [gold_number(answer) for answer in answers] for split, answers in real_answers.items()}
    assert {split: len(numbers) for split, numbers in golds.items()} == {"train": 7473, "test": 1319}
    assert all(re.fullmatch("-?[0-9]+", number) for numbers in golds.values() for number in numbers)
    assert {split: sum(number.startswith("-") for number in numbers) for split, numbers in golds.items()} == {
        "train": 3,
        "test": 2,
    }


def test_every_real_answer_is_right_against_itself(real_answers: dict[str, list[str]]) -> None:
    for answer in real_answers["train"] + real_answers["test"]:
        assert correct(answer, answer) == verdicts(RIGHT, RIGHT, RIGHT, RIGHT)


def test_no_real_answer_is_right_against_one_more(real_answers: dict[str, list[str]]) -> None:
    for answer in real_answers["test"]:
        one_more = str(int(gold_number(answer)) + 1)
        assert correct(answer, one_more) == verdicts(WRONG, WRONG, WRONG, WRONG)
