"""Extraction: the rules side by side, each with its own virtues and failures."""

from __future__ import annotations

import pytest

from gsm8k_core.scoring.answers import HEADLINE, RULES, Verdict, asked_rules, grade, judge_by, shown_rules
from gsm8k_core.types import UsageError

GOLD = "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
RIGHT, WRONG = True, False


def extracted(rule: str, completion: str) -> str | None:
    return RULES[rule].extract(completion)


def correct(completion: str, answer: str) -> dict[str, bool]:
    judged = grade(completion, answer)
    return {rule: judged[rule].correct for rule in ("openai", "strict", "flexible", "robust")}


def verdicts(openai: bool, strict: bool, flexible: bool, robust: bool) -> dict[str, bool]:
    return {"openai": openai, "strict": strict, "flexible": flexible, "robust": robust}


# --- the rules side by side ---------------------------------------------------------------------------------


def test_the_rules_stand_in_their_order_under_their_own_names() -> None:
    assert [(name, rule.name, rule.version) for name, rule in RULES.items()] == [
        ("openai", "openai", 1),
        ("strict", "strict", 3),
        ("flexible", "flexible", 3),
        ("cot", "cot", 3),
        ("qwen-math", "qwen-math", 1),
        ("verl", "verl", 1),
        ("inspect", "inspect", 1),
        ("robust", "robust", 2),
    ]
    assert HEADLINE == ("strict", "flexible", "robust")


def test_grade_gives_every_rule_what_it_found_and_whether_it_is_right() -> None:
    assert grade("#### 18.", GOLD) == {
        "cot": Verdict(None, correct=False),
        "qwen-math": Verdict("18", correct=True),
        "verl": Verdict("18.", correct=False),
        "inspect": Verdict("18", correct=True),
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
        ("10-15", "-15", None),
        ("18 eggs (see step 2)", "2", "2"),
        ("1e400", "400", None),
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


@pytest.mark.parametrize("typed", ["robust-v1", "robust v1", "Robust V1", "robust@1", "robust:v1", " robust-1 "])
def test_an_older_version_is_called_by_name_and_number(typed: str) -> None:
    assert asked_rules(typed) == ("robust-v1",)
    assert asked_rules(f"{typed},robust,robust-v2,strict") == ("robust-v1", "robust", "strict")
    assert shown_rules(typed) == ("strict", "flexible", "robust", "robust-v1")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("robust-v3", "did you mean robust-v1"),
        ("flexibel", "did you mean flexible"),
        ("strict-v2", "no rule 'strict-v2'"),
        ("", "no rule ''"),
        ("exact", "there are openai, strict"),
    ],
)
def test_a_rule_that_is_not_there_is_refused_with_those_that_are(typed: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        asked_rules(typed)


def test_all_are_the_eight() -> None:
    assert asked_rules("all") == shown_rules("ALL") == tuple(RULES)


def test_records_are_judged_by_the_asked_rules_alone() -> None:
    record = {
        "completion": "#### 18k",
        "gold": "#### 18000",
        "rules": {"robust": {"extracted": "kept", "correct": True}},
    }
    judge_by(("robust-v1", "robust"), [record])
    assert record["rules"] == {
        "robust-v1": {"extracted": "18", "correct": False},
        "robust": {"extracted": "kept", "correct": True},
    }


def test_an_older_rule_reads_no_thought_either() -> None:
    record = {"completion": "<think>#### 18</think> I give up: 7", "gold": "#### 18", "rules": {}}
    judge_by(("robust-v1",), [record])
    assert record["rules"] == {"robust-v1": {"extracted": "7", "correct": False}}
