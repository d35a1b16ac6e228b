r"""The robust rule's first version, as it was: what was scored with it can be scored again, by `robust-v1`.

The last readable `#### N`, else the last \boxed{N}, else the last "answer is N", else the last number.
"""

from __future__ import annotations

import re
from decimal import Decimal

from gsm8k_core.problems.gold import gold_number, has_few_digits, plain_decimal
from gsm8k_core.scoring import published

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


def robust_v1(completion: str) -> str | None:
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


def robust_v1_equal(extracted: str, target: str) -> bool:
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
