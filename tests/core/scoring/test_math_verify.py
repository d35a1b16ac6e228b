"""The killable worker, with a stand-in for math-verify: hangs, crashes, and absence are said, never hidden."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gsm8k_core.scoring import math_verify
from gsm8k_core.scoring.answers import Verdict
from gsm8k_core.scoring.math_verify import MathVerify, judge_records
from gsm8k_core.types import PreflightError
from tests.waiting import CEILING

FAKE = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    row = json.loads(line)
    if row["completion"] == "hang": time.sleep(100_000)
    if row["completion"] == "crash": os._exit(1)
    if row["completion"] == "noise": print("no json", flush=True)
    right = row["completion"] == row["gold"]
    print(json.dumps({"extracted": str(os.getpid()), "correct": right}), flush=True)
"""
WORKER = (sys.executable, "-c", FAKE)


def test_one_worker_judges_many_rows() -> None:
    with MathVerify(limit=CEILING, command=WORKER) as rule:
        verdicts = [rule.judge("18", gold) for gold in ("18", "steps\n#### 18", "19")]
    assert [verdict.correct for verdict in verdicts] == [True, True, False]
    assert len({verdict.extracted for verdict in verdicts}) == 1


@pytest.mark.parametrize("what", ["hang", "crash", "noise"])
def test_a_row_that_hangs_or_breaks_the_worker_is_wrong_and_the_next_one_is_judged(what: str) -> None:
    with MathVerify(limit=0.5 if what == "hang" else CEILING, command=WORKER) as rule:
        assert rule.judge(what, "18") == Verdict(None, correct=False)
        rule._limit = CEILING  # a busy machine may need longer for what does not hang
        assert rule.judge("18", "18").correct
        assert (rule.hung, rule.crashed) == ((1, 0) if what == "hang" else (0, 1))


def test_no_worker_stays_behind() -> None:
    with MathVerify(limit=CEILING, command=WORKER) as rule:
        pid = rule.judge("18", "18").extracted
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_does_not_start_is_an_error() -> None:
    with MathVerify(command=(sys.executable, "-c", "")) as rule, pytest.raises(PreflightError, match="does not start"):
        rule.judge("18", "18")


def test_an_absent_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert math_verify.missing() == "math-verify is not installed; pip install -c constraints.txt -e '.[bench]'"
    assert judge_records([]) == math_verify.missing()
    with pytest.raises(PreflightError, match="not installed"):
        MathVerify()
