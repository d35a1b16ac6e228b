r"""Named, versioned rules that read the final number out of a completion, and say whether it is the gold one.

    openai     grade-school-math's own: first `#### N`, equal as texts
    strict     lm-evaluation-harness, gsm8k 3.0, strict-match: first `#### N`, its exact_match
    flexible   the same task's flexible-extract: last run of characters like a number, its exact_match
    cot        gsm8k_cot's strict-match: first `The answer is N`, less one character, its exact_match
    qwen-math  Qwen2.5-Math: last `boxed`, else all after "he answer is", else last number; x100 and /100 are right, too
    verl       verl, strict: last `#### N` in the last 300 characters, equal as texts
    inspect    inspect_evals: the last word that is a number, to five significant digits
    robust     ours: last readable `#### N`, else last \boxed{N}, else last "answer is N", else last number,
               equal as decimals

The published ones are in published.py; math-verify, which needs a process of its own, in math_verify.py.
lm-eval also stops generation at "Question:"; that is the caller's part, a rule sees only its text.
Every rule is linear in the completion and raises on no string: a broken model may write anything.

AnswerLine ends an answer after its whole `#### N` line while it is still being written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from gsm8k_core.problems.gold import checked_number, gold_number, has_few_digits, marked_number, plain_decimal
from gsm8k_core.scoring import published


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to read a completion. `equal` takes what was extracted and the target text `#### N`."""

    name: str
    version: int
    extract: Callable[[str], str | None]
    equal: Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule found in one completion."""

    extracted: str | None
    correct: bool


def grade(completion: str, answer: str) -> dict[str, Verdict]:
    """Every rule's verdict. `answer` is GSM8K's full answer text or a plain number; DataError for neither.

    A number without its text is graded as the plainest one: "18.0", "$18" and 18 are the same gold.
    """
    target = "#### " + (marked_number(answer) if "####" in answer else plain_decimal(checked_number(answer)))
    return {rule.name: _verdict(rule, completion, target) for rule in RULES.values()}


def _verdict(rule: Rule, completion: str, target: str) -> Verdict:
    extracted = rule.extract(completion)
    return Verdict(extracted, extracted is not None and rule.equal(extracted, target))


# --- robust -------------------------------------------------------------------------------------------------
# Each step cuts the text into parts that do not overlap and reads each part once, without nested quantifiers.

# A hyphen after a digit, a letter or a bracket is a range or a difference: 10-15 ends in 15.
# `3:00` is one number, or its last number would be zero.
_NUMBER = r"(?:(?<![0-9A-Za-z)-])-)?\\?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?::00\b)?"
_WHOLE = r"(?![.,]?[0-9]| ?/ ?[0-9])"  # no fractions, and backtracking must not cut a number short
_DIGIT = re.compile(r"[0-9]")
_NUMBERS = re.compile(_NUMBER)
_HASHES = re.compile(r"#{4,}")
# `#### 1. Add the eggs` is a Markdown heading, not an answer.
_AFTER_HASHES = re.compile(rf"({_NUMBER}){_WHOLE}(?![.):]\**[ \t]+\S)")
_BOX = re.compile(r"\\boxed\s*\{")
_ANSWER = re.compile(r"answer[*_\s]{0,4}(?:is\b|:)", re.IGNORECASE | re.ASCII)
_AFTER_ANSWER = re.compile(rf"[^0-9.\n]*?({_NUMBER}){_WHOLE}")
# `9 * 2 = 18` answers 18; a dot or comma before a space ends the sum.
_SUM = re.compile(r"(?:[-+*/x×÷()$%0-9 =]|[.,](?=[0-9]))*=")
_BEFORE = " \t\r\n\f\v\u00a0\u202f*_`$€£¥\\([{:=~\"'"


def _robust(completion: str) -> str | None:
    if not _DIGIT.search(completion):
        return None
    text = completion.replace("\u2212", "-").replace("{,}", ",")
    for latex in ("\\,", "\\!", "\\{", "\\}"):
        text = text.replace(latex, "")
    return (
        _last_after(_HASHES, _AFTER_HASHES, text)
        or _last_boxed(text)
        or _last_after(_ANSWER, _AFTER_ANSWER, text)
        or _last_number(text)
    )


def _robust_equal(extracted: str, target: str) -> bool:
    return Decimal(extracted) == Decimal(gold_number(target))  # no x100 leniency: 50% is not 0.5


def _last_after(mark: re.Pattern[str], reading: re.Pattern[str], text: str) -> str | None:
    """The number after the last `mark` that has a readable one before the next mark."""
    for part in reversed(mark.split(text)[1:]):
        head = part.lstrip(_BEFORE)
        if "=" in head and (equation := _SUM.match(head)):
            head = head[equation.end() :].lstrip(_BEFORE)
        found = reading.match(head) if head else None
        if found and has_few_digits(found[1]):
            return plain_decimal(found[1])
    return None


def _last_boxed(text: str) -> str | None:
    """The number in the last closed `\\boxed{}` that holds exactly one, after its last `=` if it has one."""
    for part in reversed(_BOX.split(text)[1:]):
        content = published.closed(part)
        numbers = _NUMBERS.findall(content.rpartition("=")[2]) if content else []
        if len(numbers) == 1 and has_few_digits(numbers[0]):
            return plain_decimal(numbers[0])
    return None


def _last_number(text: str) -> str | None:
    return next((plain_decimal(number) for number in reversed(_NUMBERS.findall(text)) if has_few_digits(number)), None)


# --- all of them ----------------------------------------------------------------------------------------------

_RULES = (
    Rule("openai", 1, published.openai, published.openai_equal),
    Rule("strict", 3, published.strict, published.harness_equal),  # 3: lm-eval's version of the task
    Rule("flexible", 3, published.flexible, published.harness_equal),
    Rule("cot", 3, published.cot, published.harness_equal),
    Rule("qwen-math", 1, published.qwen_math, published.qwen_equal),
    Rule("verl", 1, published.verl, published.openai_equal),
    Rule("inspect", 1, published.inspect, published.inspect_equal),
    Rule("robust", 1, _robust, _robust_equal),
)
RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _RULES})
HEADLINE = ("strict", "flexible", "robust")  # the rules that tables begin with
HEADLINE_RULE = "flexible"  # the one that decides: of the paired test, the dev accuracy and the guard


# --- while an answer is written -------------------------------------------------------------------------------

TAIL = 64  # tokens; the line that has just ended is among them
# A line break has to follow: without it, the number may go on.
_LINE = re.compile(r"####[^\n]*[0-9][^\n]*\n")


class AnswerLine:
    """Sampling.complete: true once a line with `####` and a digit has ended.

    It is asked after every token, and decodes only where that token breaks a line.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._breaks: dict[int, bool] = {}

    def __call__(self, tokens: Sequence[int]) -> bool:
        last = tokens[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in self._decode([last])
        return self._breaks[last] and _LINE.search(self._decode(tokens[-TAIL:])) is not None
