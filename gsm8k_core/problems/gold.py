"""The gold number: the N of an answer's last line `#### N`, as a plain decimal, or why there is none.

What lm-eval could never match is refused here, and not counted as wrong for ever.

An answer from elsewhere says its number in a sentence or a box. `ended` makes a last line `#### N` of that, since an
evaluation asks for that line and a model writes what it was shown:

    3 + 4 = 7.\n#### 7\nThe answer is: 7    ->    3 + 4 = 7.\n#### 7
    3 + 4 = 7.\nThe answer is: 7             ->    3 + 4 = 7.\n#### 7
    3 + 4 = 7. The answer is 7.              ->    3 + 4 = 7. The answer is 7.\n#### 7
    So there are $\\boxed{7}$ pens.           ->    So there are $\\boxed{7}$ pens.\n#### 7
"""

from __future__ import annotations

import re
from functools import lru_cache

from gsm8k_core.types import DataError

MAX_DIGITS = 40  # int() raises past 4,300 digits, float() turns 400 into inf; no real answer comes near
# Commas must group thousands: `1,5` is 1.5 to one writer and 15 to another.
_GOLD = re.compile(r"(?:-?\$?|\$-)(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?\.?")
# The last one of a line; what stands before it decides whether the line says anything else.
_SENTENCE = re.compile(r"(?i)\b(?:the )?(?:final |correct )?answer(?: is)?(?: is ?:| ?:|(?<=is))[ *]*(?=\S)(.*)$")
_BOX = re.compile(r"\\f?box(?:ed)? ?\{")
_MARKS = " *$.`"  # what Markdown and TeX put around a number
_TEX = re.compile(r"\\[!,;: ]|\\[()\[\]]|\{,\}|~")  # thin spaces and brackets: 10\,000, 10{,}000
_UNIT = re.compile(r"(?:\\(?:text|mathrm|textrm|mbox)\{[^{}]*\}(?:\^\{?[0-9]\}?)?|\^\{?\\circ\}?|\\?%)$")
_DROPPED = str.maketrans("", "", ",$\\")
_NOT_DIGITS = str.maketrans("", "", ",$\\-.:")


def gold_number(answer: str) -> str:
    """The N of the single last `#### N`, as a plain decimal: `#### 1,234.50` gives `1234.5`."""
    return plain_decimal(marked_number(answer))


def ended(answer: str) -> tuple[str, str, str]:
    """The answer with its one `#### N` at the end, N, and where it stood: "####", "#### and more", "sentence" or "box".

    What ends so already stays as it is, letter by letter. Raises DataError where there is no number, or are two.
    """
    if "####" in answer:
        steps, mark, rest = answer.partition("####")
        line, _, more = rest.partition("\n")
        if not more.strip() or "####" in more:
            return answer, marked_number(answer), mark
        kept = f"{steps}{mark}{line.rstrip()}"
        number = marked_number(kept)
        if not more.rstrip().endswith(f"The answer is: {number}"):  # as MetaMathQA's do, 395,000 times
            _refuse_two(number, _said(more))
        return kept, number, "#### and more"
    before, _, last = answer.rstrip().rpartition("\n")
    if (sentence := _SENTENCE.search(last)) is not None:
        number = checked_number(_bare(sentence[1]))
        _refuse_two(number, _boxed(before))
        alone = not last[: sentence.start()].strip(_MARKS)
        kept = before.rstrip() if alone and before.strip() else answer.rstrip()
        return f"{kept}\n#### {number}", number, "sentence"
    if (box := _boxed(answer)) is not None:
        number = checked_number(_bare(box))
        return f"{answer.rstrip()}\n#### {number}", number, "box"
    return answer, marked_number(answer), ""  # which says that there is none


def _said(text: str) -> str | None:
    """What stands after "the answer is" in the last line, or in the last box."""
    sentence = _SENTENCE.search(text.rstrip().rpartition("\n")[2])
    return sentence[1] if sentence else _boxed(text)


def _boxed(text: str) -> str | None:
    """What stands in the last box, its braces matched."""
    last = max((found.end() for found in _BOX.finditer(text)), default=None)
    if last is None:
        return None
    depth = 1
    for place in range(last, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[last:place]
    return text[last:]


def _bare(said: str) -> str:
    """A number without the marks, the TeX and the unit around it: `$\\boxed{10{,}000\\text{ cm}}$.` gives `10,000`."""
    text = _boxed(said) or said
    text = _TEX.sub(lambda found: "," if found[0] in ("{,}", "\\,") else "", text).replace("\N{MINUS SIGN}", "-")
    text = text.strip(_MARKS).replace("\\$", "$")
    return _UNIT.sub("", text).strip(_MARKS).replace("$", "")


def _refuse_two(number: str, other: str | None) -> None:
    """Raises DataError where the answer also says another number, in other words."""
    second = None if other is None else _bare(other)
    if second and _GOLD.fullmatch(second) and plain_decimal(second) != plain_decimal(number):
        raise DataError(f"the answer says two numbers, {_shown(number)} and {_shown(second)}; keep the right one")


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


@lru_cache(maxsize=1 << 14)  # golds repeat, and share one text each
def plain_decimal(number: str) -> str:
    """`-$1,234.50` gives `-1234.5`, `3:00` gives `3`."""
    text = number.partition(":")[0].translate(_DROPPED)
    whole, _, decimals = text.lstrip("-").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    size = f"{whole}.{decimals}" if decimals else whole
    return "-" + size if text.startswith("-") and size != "0" else size


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:24] + "..." + text[-24:])
