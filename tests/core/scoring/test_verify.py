"""The filter of rejection sampling: what is verified, and why the rest is not."""

from __future__ import annotations

import pytest

from gsm8k_core.scoring.answers import grade
from gsm8k_core.scoring.verify import Mode, Verification, choose_mode, verify
from gsm8k_core.types import DataError, FinishReason

RIGHT = "She sells 48/2 = <<48/2=24>>24.\nIn all 48 + 24 = <<48+24=72>>72.\n#### 72"


def of(text: str, finish: FinishReason = "stop", gold: str = "72", mode: Mode = "steps") -> Verification:
    return verify(text, finish, gold, mode)


def test_a_right_answer_is_verified_with_its_chain() -> None:
    found = of(RIGHT)
    assert (found.verified, found.reason, found.gold_right) == (True, "", True)
    assert found.chain == ("48/2", "48+24")
    assert [RIGHT[claim.start :].startswith(claim.expression) for claim in found.claims] == [True] * 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("48 + 24 = 72", "no line ####"),
        ("#### 72\n48 + 24 = 72\n#### 72", "two lines ####"),
        ("48 + 24 = 72\n#### 72\nSo it is.", "#### is not the last line"),
        ("48 + 24 = 72 #### #### 72", "#### twice in one line"),
        ("48 + 24 = 72\n#### seventy-two", "no number after ####"),
        ("48 + 24 = 72\n####72", "no number after ####"),
        ("48 + 24 = 72\n#### .", "no number after ####"),
        ("48 + 24 = 72\n#### 72 or 73", "two numbers after ####"),
        ("48 + 24 = 72\n#### 24", "wrong number: 24, not 72"),
        ("48 + 24 = 72\n#### 72.00", "the gold number in another form: 72.00, not 72"),
        ("3 * 4 = 13\n48 + 24 = 72\n#### 72", "a wrong step: 3 * 4 = 13"),
        ("48 + 24 = <<48+24=73>>72\n#### 72", "a wrong step: 48+24 = 73"),
        ("It is 72.\n#### 72", "no readable step"),
        ("It is <<72=72>>72.\n#### 72", "no readable step"),
        ("It is <<72=71>>72.\n48 + 24 = 72\n#### 72", "a wrong step: 72 = 71"),
        ("80 * 25% = 2000\n48 + 24 = 72\n#### 72", "a wrong step: 80 * 25% = 2000"),
        ("", "no line ####"),
    ],
)
def test_what_is_refused_says_why(text: str, reason: str) -> None:
    found = of(text)
    assert (found.verified, found.reason) == (False, reason)


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "cut at the limit"), ("complete", "stopped from outside after its #### line")]
)
def test_an_answer_that_did_not_end_by_itself_is_refused(finish: FinishReason, reason: str) -> None:
    assert of(RIGHT, finish).reason == reason


@pytest.mark.parametrize("text", ["It is 72.\n#### 72", "3 * 4 = 13\n#### 72", "48 + 24 = 72\n#### 72 \n\n"])
def test_gold_mode_asks_for_the_end_alone(text: str) -> None:
    assert of(text, mode="gold").verified
    assert not of(text.replace("#### 72", "#### 73"), mode="gold").verified


@pytest.mark.parametrize("gold", ["72", "72.0", "so\n#### 72"])
def test_the_gold_may_be_a_number_or_the_whole_answer(gold: str) -> None:
    assert of(RIGHT, gold=gold).verified
    with pytest.raises(DataError):
        of(RIGHT, gold="seventy")


@pytest.mark.parametrize(
    ("gold", "last", "verified"),
    [
        ("$72", "$72", True),
        ("$72", "72", True),
        ("$72", "$72.", True),
        ("$1,072", "$1,072", True),
        ("-$72", "$-72", True),
        ("$72", "$73", False),
        ("$72", "$", False),
        ("$72", "$$72", False),
        ("72", "$72", False),  # nobody showed it that form, and the strict rule does not read it
    ],
)
def test_a_dollar_sign_is_taken_where_the_data_write_one(gold: str, last: str, verified: bool) -> None:
    answer = f"48 + 24 = 72\n#### {last}"
    assert of(answer, gold=f"so\n#### {gold}").verified == verified
    assert not verified or "$" not in last or grade(answer, "72")["strict"].extracted is None  # as published


@pytest.mark.parametrize("last", ["72", "72.", "72 clips", "$72", "7 2", "72.0", "1,072", "72,", "-72", "", "+72"])
def test_what_is_verified_is_right_by_the_strict_rule(last: str) -> None:
    text = f"48 + 24 = 72\n#### {last}"
    assert of(text).verified == (grade(text, "72")["strict"].correct and last != "7 2")


def test_steps_are_not_asked_of_a_model_that_writes_none() -> None:
    silent, spoken, wrong = of("#### 72"), of(RIGHT), of("48 + 24 = 72\n#### 1")
    assert choose_mode([silent] * 7 + [spoken] * 3 + [wrong] * 90).name == "steps"
    chosen = choose_mode([silent] * 8 + [spoken] * 3 + [wrong] * 90)
    assert chosen.name == "gold"
    assert "only 3 of 11 answers with the gold number hold a step" in chosen.reason
    assert choose_mode([wrong]).name == "steps"
