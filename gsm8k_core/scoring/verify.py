"""Whether an answer may be trained on: the filter of rejection sampling, apart from the rules that eval judges by.

Verified, in `steps` mode, is an answer that

    ended by itself                  finish reason `stop`: it drew an end token
    has one line with ####           and that line is the last one that is not blank
    has the gold number there        `#### N` as the strict rule reads it, and no second number behind it; where the
                                     data write `#### $5`, a dollar sign too: it is the form that the model was shown
    holds a step, and no wrong one   every `a op b = c` that claims.py reads, in or out of <<>>

`gold` mode asks for the first three alone: claims are not looked at, neither for being there nor for being right.
Binary: no partial credit. A wrong step is one that is surely read and surely wrong; see claims.py for what that misses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from gsm8k_core.problems.gold import checked_number, gold_of, marked_number, plain_decimal
from gsm8k_core.scoring.claims import Claim, find_claims
from gsm8k_core.scoring.published import MARKED, harness_equal
from gsm8k_core.types import Choice, FinishReason

Mode = Literal["steps", "gold"]
READABLE = 0.3  # of the gold-right answers must hold a claim; with fewer, `steps` would throw most of them away

_UNENDED: dict[FinishReason, str] = {
    "length": "cut at the limit",
    "complete": "stopped from outside after its #### line",
}
_DIGIT = re.compile(r"[0-9]")
_PRICED = re.compile(r"#### ((?:-?\$?|\$-)[0-9.,]+)")  # MARKED, with a dollar sign


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of one answer; `reason` says why it is refused, in plain words, and is empty where it is not."""

    verified: bool
    reason: str
    chain: tuple[str, ...]  # the claims' expressions without blanks and units, as dedupe compares them
    claims: tuple[Claim, ...]
    gold_right: bool  # the first three conditions hold, whatever the steps are


def verify(text: str, finish_reason: FinishReason, gold: str, mode: Mode = "steps") -> Verification:
    """The verdict on one answer. `gold` is a plain number or GSM8K's answer text; DataError for neither."""
    claims = tuple(find_claims(text))
    wrong_end = _UNENDED.get(finish_reason, "") or _wrong_end(text, gold)
    reason = wrong_end or (_wrong_step(claims) if mode == "steps" else "")
    return Verification(not reason, reason, chain(claims), claims, not wrong_end)


def chain(claims: Iterable[Claim]) -> tuple[str, ...]:
    """The steps of an answer. `48/2 = <<48/2=24>>24` is one step, and so is one that is repeated at once."""
    return tuple(expression for expression, _ in groupby(claim.plain for claim in claims if claim.is_step))


def choose_mode(verdicts: Iterable[Verification]) -> Choice:
    """`steps`, or `gold` where fewer than READABLE of the gold-right answers hold a claim; the reason counts them."""
    right = [verdict for verdict in verdicts if verdict.gold_right]
    readable = sum(bool(verdict.chain) for verdict in right)
    if not right:
        return Choice("steps", "no answer had the gold number, so nothing speaks against it")
    found = f"{readable} of {len(right)} answers with the gold number hold a step that can be read"
    if readable < READABLE * len(right):
        return Choice("gold", f"only {found}, fewer than {READABLE:.0%}: steps are not checked")
    return Choice("steps", f"{found}: each must be right")


def _wrong_end(text: str, gold: str) -> str:
    """Why the end of an answer is not the gold number's line; empty where it is."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if "####" in line]
    if len(marked) != 1:
        return f"{_counted(len(marked))} ####"
    if marked[0] != lines[-1]:
        return "#### is not the last line"
    if marked[0].count("####") > 1:
        return "#### twice in one line"
    wanted = marked_number(gold) if "####" in gold else plain_decimal(checked_number(gold))
    found = (_PRICED if "$" in wanted else MARKED).search(marked[0])
    if found is None or not _DIGIT.search(found[1]):
        return "no number after ####"
    if _DIGIT.search(marked[0], found.end()):
        return "two numbers after ####"
    if harness_equal(found[1], f"#### {wanted}"):
        return ""
    same = plain_decimal(found[1].rstrip(".")) == gold_of(gold)
    return f"{'the gold number in another form' if same else 'wrong number'}: {found[1]}, not {wanted}"


def _counted(lines: int) -> str:
    return {0: "no line", 2: "two lines"}.get(lines, f"{lines} lines")


def _wrong_step(claims: tuple[Claim, ...]) -> str:
    """Why the steps are not all right; empty where they are."""
    wrong = next((claim for claim in claims if not claim.right), None)
    if wrong:
        return f"a wrong step: {wrong.expression} = {wrong.stated}"
    return "" if chain(claims) else "no readable step"
