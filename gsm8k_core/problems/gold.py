"""The gold number: the N of an answer's last line `#### N`, as a plain decimal, or why there is none.

What lm-eval could never match is refused here, and not counted as wrong for ever.
"""

from __future__ import annotations

import re

from gsm8k_core.types import DataError

MAX_DIGITS = 40  # int() raises past 4,300 digits, float() turns 400 into inf; no real answer comes near
# Commas must group thousands: `1,5` is 1.5 to one writer and 15 to another.
_GOLD = re.compile(r"(?:-?\$?|\$-)(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?\.?")
_DROPPED = str.maketrans("", "", ",$\\")
_NOT_DIGITS = str.maketrans("", "", ",$\\-.:")


def gold_number(answer: str) -> str:
    """The N of the single last `#### N`, as a plain decimal: `#### 1,234.50` gives `1234.5`."""
    return plain_decimal(marked_number(answer))


def gold_of(answer: str) -> str:
    """gold_number of GSM8K's answer text, or of a number without its text."""
    return gold_number(answer if "####" in answer else f"#### {answer}")


def marked_number(answer: str) -> str:
    """The N after the one `#### `, as it is written. Raises DataError where there is no such number."""
    parts = answer.split("####")
    if len(parts) == 1:
        raise DataError(f"the answer has no '####': {_shown(answer)}; end it with a line such as '#### 18'")
    if len(parts) > 2:
        raise DataError(f"the answer has {len(parts) - 1} '####', there must be one, before the final number")
    # Strict can only match one space; a model trained on '####18' would score zero under it.
    if not parts[1].startswith(" "):
        raise DataError(f"no space after '####': {_shown('####' + parts[1])}; write it as '#### 18'")
    return checked_number(parts[1][1:].rstrip())


def checked_number(number: str) -> str:
    """`number` itself. Raises DataError where it is none."""
    if not _GOLD.fullmatch(number):
        raise DataError(f"the final answer is no plain number: {_shown(number)}; write 18, -3, 1,234 or 18.5")
    if not has_few_digits(number):
        raise DataError(f"the final answer has more than {MAX_DIGITS} digits: {_shown(number)}")
    return number


def has_few_digits(number: str) -> bool:
    """No more than MAX_DIGITS."""
    return len(number.translate(_NOT_DIGITS)) <= MAX_DIGITS


def plain_decimal(number: str) -> str:
    """`-$1,234.50` gives `-1234.5`, `3:00` gives `3`."""
    text = number.partition(":")[0].translate(_DROPPED)
    whole, _, decimals = text.lstrip("-").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    size = f"{whole}.{decimals}" if decimals else whole
    return "-" + size if text.startswith("-") and size != "0" else size


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:24] + "..." + text[-24:])
