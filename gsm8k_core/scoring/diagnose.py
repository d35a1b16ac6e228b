"""What went wrong, record by record: one category each, every sign that was seen, and counts of both.

Categories, the first that holds: correct (the robust rule's verdict), degenerate (empty, only token 0, or a loop), cut
(by the length limit), no_answer (the robust rule found no number), arithmetic_slip (with each sum corrected the chain
comes to the gold), wrong_last_line (no wrong sum, and the last claim's result is the gold, yet another number was
answered), wrong_operation, wrong_number, step_missing, step_extra (the one change that would mend the chain: see
faults.py), other_wrong. The signs stand beside the category: a correct answer can hold a slip, a cut one can loop.

Limits: a sum is what claims.find_claims can read; in 0.1 % of GSM8K's own claims it calls loose writing wrong. The
gold's steps are one plan of several: an answer that follows another is other_wrong. A loop whose text changes in each
round, by a counter, is seen only where most of its word 4-grams stay the same. Token 0 (Qwen2.5's `!`) is the argmax of
logits that are all NaN; our backends end with an error that names such logits, but completions that were made elsewhere
hold it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from gsm8k_core.problems.gold import gold_of
from gsm8k_core.scoring.calculator import written
from gsm8k_core.scoring.claims import Claim, find_claims
from gsm8k_core.scoring.faults import Reference, fault, find_fault, is_slip, steps_of
from gsm8k_core.scoring.stats import percent, wilson

CATEGORIES = {
    "correct": "correct",
    "arithmetic_slip": "arithmetic slip",
    "wrong_last_line": "right steps, wrong last line",
    "wrong_operation": "wrong operation",
    "wrong_number": "wrong number taken",
    "step_missing": "a step missing",
    "step_extra": "a step too many",
    "other_wrong": "other wrong answer",
    "no_answer": "no answer",
    "cut": "cut by the length limit",
    "degenerate": "degenerate text",
}
MOST_STEPS = 8  # with all above it in one row

MAX_TEXT = 100_000  # characters of a completion that are read
LOOP_TAIL = 2_000  # characters at the end in which a loop is looked for
LOOP_ROUNDS = 4
LOOP_SIZE = 60  # characters that all rounds have together
NGRAM = 4
NGRAM_WORDS = 40  # fewer words are no loop
NGRAM_DISTINCT = 0.3  # of the n-grams; the train split's answers have 0.68 at the least, measured


@dataclass(frozen=True, slots=True)
class Slip:
    """The first wrong claim of a text, whether or not the answer hangs on it."""

    expression: str
    stated: str
    should_be: str
    start: int  # in characters


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One record. `signs`: every category but correct and other_wrong whose condition holds."""

    category: str
    signs: tuple[str, ...]
    degenerate: str | None  # empty, token_0, loop
    slip: Slip | None
    num_slips: int
    num_claims: int
    num_steps: int | None  # of the gold answer; None where only a number is known


def diagnose(record: Mapping[str, Any]) -> Diagnosis:
    """What one record shows. Linear in its text; raises on no completion."""
    text = record["completion"][:MAX_TEXT]
    verdict = record["rules"]["robust"]
    claims = find_claims(text)
    wrong, gold = [claim for claim in claims if not claim.right], gold_fraction(record)
    answered = None if verdict["extracted"] is None else Fraction(verdict["extracted"])
    degenerate = degeneration(text, record.get("token_ids") or ())
    steps = steps_of(claims)
    seen = {
        "degenerate": degenerate is not None,
        "cut": record.get("finish_reason") == "length",
        "no_answer": verdict["extracted"] is None,
        "arithmetic_slip": bool(wrong) and answered is not None and is_slip(steps, gold, answered),
        "wrong_last_line": _is_wrong_last_line(claims, verdict, gold),
    }
    if not verdict["correct"] and answered is not None and not any(seen.values()) and (steps or "=" not in text):
        reference = Reference.of(str(record.get("question", "")), str(record.get("answer") or ""), gold)
        seen |= {kind: True for kind in [fault(steps, reference, answered)] if kind}
    signs = tuple(name for name, holds in seen.items() if holds)
    category = "correct" if verdict["correct"] else next(iter(signs), "other_wrong")
    slip = _slip(wrong[0]) if wrong else None
    return Diagnosis(category, signs, degenerate, slip, len(wrong), len(claims), num_steps(record.get("answer")))


def wrong_step(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """Where the first wrong step of an answer stands: its first character and the one behind it; None where none does.

    It is the first wrong sum, right answer or not; of a wrong answer without one the step that its class is about, or
    the last line where the steps are right. A missing step stands nowhere.
    """
    text, category = record["completion"][:MAX_TEXT], record["diagnosis"]["category"]
    claims = find_claims(text)
    if wrong := next((claim for claim in claims if not claim.right), None):
        return wrong.start, wrong.end
    if category == "wrong_last_line" and "####" in text:
        start = text.rindex("####")
        return start, start + len(text[start:].partition("\n")[0])
    if category not in ("wrong_operation", "wrong_number", "step_extra"):
        return None
    steps, answered = steps_of(claims), Fraction(record["rules"]["robust"]["extracted"])
    reference = Reference.of(str(record["question"]), str(record["answer"] or ""), gold_fraction(record))
    found = find_fault(steps, reference, answered)
    if found is None or found[1] is None:
        return None
    return steps[found[1]].start, steps[found[1]].end


def diagnosis_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """diagnose() as plain JSON."""
    found = diagnose(record)
    return {**asdict(found), "signs": list(found.signs)}


def gold_fraction(record: Mapping[str, Any]) -> Fraction:
    """The gold as a number; `gold` is a plain number or a whole GSM8K answer."""
    return Fraction(Decimal(gold_of(str(record["gold"]))))


def num_steps(answer: str | None) -> int | None:
    """A gold answer's steps: its `<<>>` annotations, or the lines before `####` where it has none."""
    if not answer or "####" not in answer:
        return None
    lines = [line for line in answer.partition("####")[0].splitlines() if line.strip()]
    return len(re.findall(r"<<[^<>\n]*>>", answer)) or len(lines) or None


def _slip(claim: Claim) -> Slip:
    """What the first wrong claim should have said, as a percentage where it said one."""
    if not claim.stated.endswith("%"):
        return Slip(claim.expression, claim.stated, written(claim.value), claim.start)
    # 6/25 = 25% and 6/25*100 = 25% both should be 24%.
    share = min(claim.value, claim.value / 100, key=lambda value: abs(value - claim.result))
    return Slip(claim.expression, claim.stated, written(share * 100) + "%", claim.start)


def _is_wrong_last_line(claims: Sequence[Claim], verdict: Mapping[str, Any], gold: Fraction) -> bool:
    if verdict["correct"] or verdict["extracted"] is None or not claims:
        return False
    return all(claim.right for claim in claims) and gold in (claims[-1].result, claims[-1].value)


# --- degenerate text ----------------------------------------------------------------------------------------


def degeneration(text: str, token_ids: Sequence[int] = ()) -> str | None:
    """`empty`, `token_0` (no other token, or nothing but `!` where only the text is known), `loop`, or None."""
    if token_ids and not any(token_ids):
        return "token_0"
    if not text.strip():
        return "empty"
    if not text.strip("! \t\r\n"):
        return "token_0"
    return "loop" if _ends_in_loop(text) or _repeats(text) else None


def _ends_in_loop(text: str) -> bool:
    """Whether the text ends in at least LOOP_ROUNDS rounds of the same characters, LOOP_SIZE or more in all.

    Source: the prefix function of Knuth, Morris and Pratt, SIAM J. Comput. 6 (1977), of the reversed end; a prefix of
    n characters with border b has period n - b.
    """
    mirrored = text.rstrip()[-LOOP_TAIL:][::-1]
    borders = [0] * len(mirrored)
    for index in range(1, len(mirrored)):
        border = borders[index - 1]
        while border and mirrored[index] != mirrored[border]:
            border = borders[border - 1]
        borders[index] = border + (mirrored[index] == mirrored[border])
        size = index + 1
        if size >= LOOP_SIZE and size >= LOOP_ROUNDS * (size - borders[index]):
            return True
    return False


def _repeats(text: str) -> bool:
    """Whether few of the word 4-grams differ, wherever the loop stands.

    Source: seq-rep-4 of Welleck et al., ICLR 2020 (arXiv 1908.04319), which is one minus this share.
    """
    words = text.split()
    if len(words) < NGRAM_WORDS:
        return False
    grams = list(zip(*(words[at:] for at in range(NGRAM)), strict=False))
    return len(set(grams)) < NGRAM_DISTINCT * len(grams)


# --- counts -------------------------------------------------------------------------------------------------


def breakdown(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over records as plain JSON; accuracies are the robust rule's, with Wilson's interval."""
    return _breakdown(records, [diagnose(record) for record in records])


def _breakdown(records: Sequence[Mapping[str, Any]], found: Sequence[Diagnosis]) -> dict[str, Any]:
    if not records:
        raise ValueError("a breakdown needs at least one record")
    categories = Counter(one.category for one in found)
    signs = Counter(sign for one in found for sign in one.signs)
    kinds = Counter(one.degenerate for one in found)
    endings = [record["finish_reason"] for record in records if record.get("finish_reason")]
    return {
        "n": len(records),
        "categories": {name: categories[name] for name in CATEGORIES},
        "signs": {name: signs[name] for name in CATEGORIES if name not in ("correct", "other_wrong")},
        "degenerate": {kind: kinds[kind] for kind in ("empty", "token_0", "loop")},
        "claims": {"total": sum(one.num_claims for one in found), "wrong": sum(one.num_slips for one in found)},
        "stopped": _rate(endings.count("stop"), len(endings)),
        "by_steps": _by_steps(found),
    }


def compare_breakdowns(
    base_records: Sequence[Mapping[str, Any]], trained_records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Both breakdowns, and from which category to which each problem went; the same problems in the same order."""
    if [record["id"] for record in base_records] != [record["id"] for record in trained_records]:
        raise ValueError("both models' records must be of the same problems, in the same order")
    base, trained = ([diagnose(record) for record in records] for records in (base_records, trained_records))
    moved = Counter((old.category, new.category) for old, new in zip(base, trained, strict=True))
    return {
        "base": _breakdown(base_records, base),
        "trained": _breakdown(trained_records, trained),
        "moved": {old: {new: moved[old, new] for new in CATEGORIES} for old in CATEGORIES},
    }


def category_rows(*breakdowns: Mapping[str, Any]) -> list[list[str]]:
    """A row per category and one for the stop rate: its name, then each breakdown's `count (share)`."""
    rows = []
    for name, label in CATEGORIES.items():
        rows.append([label, *(_count(one["categories"][name], one["n"]) for one in breakdowns)])
    ended = [one["stopped"] for one in breakdowns]
    return [*rows, ["ended by itself", *(_count(one["count"], one["n"]) for one in ended)]]


def step_rows(*breakdowns: Mapping[str, Any]) -> list[list[str]]:
    """A row per number of steps: it, its problems, then each breakdown's accuracy. The same problems in each."""
    rows = []
    for same in zip(*(one["by_steps"] for one in breakdowns), strict=True):
        rows.append([same[0]["steps"], str(same[0]["n"]), *(percent(one["rate"]) for one in same)])
    return rows


def _by_steps(found: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    groups: dict[int, list[bool]] = {}
    for one in found:
        if one.num_steps is not None:
            groups.setdefault(min(one.num_steps, MOST_STEPS), []).append(one.category == "correct")
    return [
        {"steps": f"{steps} or more" if steps == MOST_STEPS else str(steps), **_rate(sum(right), len(right))}
        for steps, right in sorted(groups.items())
    ]


def _rate(count: int, n: int) -> dict[str, Any]:
    """Nulls where nothing is known."""
    if n == 0:
        return {"n": 0, "count": 0, "rate": None, "interval": None}
    return {"n": n, "count": count, "rate": count / n, "interval": list(wilson(count, n))}


def _count(count: int, n: int) -> str:
    return f"{count} ({100 * count / n:.1f} %)" if n else "unknown"
