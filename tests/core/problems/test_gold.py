"""Gold answers: what is a number, what is refused, and the real ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from gsm8k_core.problems.gold import gold_number
from gsm8k_core.scoring.answers import grade
from gsm8k_core.types import DataError


def correct(completion: str, answer: str) -> dict[str, bool]:
    return {rule: verdict.correct for rule, verdict in grade(completion, answer).items()}


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


@pytest.mark.parametrize(("written", "plain"), [("18.0", "18"), ("-$3", "-3"), ("$1,234.50", "1234.5"), ("007", "7")])
def test_a_number_without_its_text_is_graded_as_the_plainest(written: str, plain: str) -> None:
    assert grade("so it is 5", written) == grade("so it is 5", plain)
    verdicts = grade(f"#### {plain}", written)
    assert all(verdicts[rule].correct for rule in ("openai", "strict", "flexible", "robust"))


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
    wrong = Counter(
        rule
        for answer in real_answers["train"] + real_answers["test"]
        for rule, right in correct(answer, answer).items()
        if not right
    )
    # No gold says "The answer is N." last; five say "the answer is" on the way, and qwen-math reads on from there.
    assert set(wrong) == {"cot", "qwen-math"}
    assert wrong["qwen-math"] == 5


def test_no_real_answer_is_right_against_one_more(real_answers: dict[str, list[str]]) -> None:
    for answer in real_answers["test"]:
        one_more = str(int(gold_number(answer)) + 1)
        judged = correct(answer, one_more)
        close = abs(int(one_more)) >= 10_000  # qwen-math's 1e-4, and inspect's five digits from 100,000 on
        assert not any(right for rule, right in judged.items() if not (close and rule in ("qwen-math", "inspect")))
