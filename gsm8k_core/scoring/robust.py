r"""The robust rule, version 2: which part of a completion is its answer; `quantities` reads that part whole.

In this order, the last of each kind that can be read; a think block is removed first, also one that is never closed:

    #### N, <answer>N</answer>      \boxed{N}      "the answer is N" in MGSM's languages      ### N alone on its line
    the last number

Where such a part holds a time, a range or an open sum, that is the answer, and no number: nothing before it is taken.
Only so many marks from the end are looked at, and so many characters behind each: the time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from gsm8k_core.problems.gold import gold_number
from gsm8k_core.scoring.answer_words import LANGUAGES
from gsm8k_core.scoring.published import closed
from gsm8k_core.scoring.quantities import Read, Style, first, last, only, plain, written

MOST_MARKS = 64  # of a kind, from the end; and lines with digits, none of which is a number
LONGEST = 400  # characters that are read behind a mark
BEFORE_NOUN = 40  # characters of a mark at most: **The final answer
NEAR_END = 4_000  # characters in which `### 18` is looked for
LONGEST_LINE = 300  # characters of a line, from its end, in which the last number is looked for

# \d: of any script.
_DIGIT = re.compile(r"[\d¼½¾⅐-⅞]")
_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_MARK = re.compile(r"(?P<hashes>[#＃]{4,})|<(?:final[_ ])?ans(?:wer)?>", re.IGNORECASE)
_TAG = re.compile(r"</")
_BOX = re.compile(r"(?:\\f?|\x08|(?<![A-Za-z\\]))boxed\s*\{|\x08oxed\s*\{")
_BEFORE = " \t\r\n\f\v\u00a0\u202f\u2009\u3000*_`([{:：=~≈\"'"  # between a mark and its number
_LEAD = re.compile(
    r"(?:(?:(?:the |my )?(?:final )?answer(?: is)?|total|about|approximately|approx\.|around|roughly|exactly|only|just"
    r"|nearly|almost|a total of|\$? ?[A-Za-z] ?(?==)|[:=≈~])\s?){1,4}",
    re.IGNORECASE,
)
_HEADING = re.compile(r"([0-9]{1,2})[.):]\**[ \t]+\S")  # 1. Count the eggs
_AT_NUMBER = re.compile(r"[-+$√]?[ $-]{0,3}\.?[0-9]|√")
_BEHIND_WORDS = re.compile(r"[^0-9.\n]*(?=\.?[0-9])")
_PAIR = re.compile(r"[0-9][0-9.,]* and [$]?[0-9]")
_SMALL_HEADING = re.compile(r"^[ \t]{0,3}#{1,3}[ \t*]*([^\n#]{1,60})$", re.MULTILINE)
_ALONE = re.compile(r"[-$ ]{0,4}[0-9](?:[0-9.,/]| (?=[0-9]))*[$%]?(?P<unit>(?: ?[^\W\d_]+){0,3})[.!]{0,3}")


def robust(completion: str) -> str | None:
    """The extraction: a plain decimal, or `p/q` where that has no end."""
    text = _without_thoughts(completion) if "<" in completion else completion
    if not _DIGIT.search(text):
        return None
    for reader in (_marked, _boxed, _said, _headed, _at_the_end):
        if (found := reader(text)) is not None:
            return None if found.value is None else written(found.value)
    return None


def robust_equal(extracted: str, target: str) -> bool:
    """Equal as numbers; no x100 leniency: 50% is not 0.5."""
    return Fraction(extracted) == Fraction(Decimal(gold_number(target)))


def _without_thoughts(text: str) -> str:
    """What stands outside; an end without a beginning ends one that the prompt began."""
    parts = _THOUGHT.split(text)
    kept, depth = [parts[0]], 0
    for mark, part in zip(parts[1::2], parts[2::2], strict=True):
        if mark:
            kept = kept if depth else []
            depth = max(depth - 1, 0)
        else:
            depth += 1
        if not depth:
            kept.append(part)
    return "\n".join(kept)


def _parts(marks: Sequence[re.Match[str]], text: str) -> Iterator[tuple[re.Match[str], str]]:
    """The last MOST_MARKS, from the end, each with the text up to the next one."""
    stop = len(text)
    for mark in marks[: -MOST_MARKS - 1 : -1]:
        yield mark, text[mark.end() : min(stop, mark.end() + LONGEST)]
        stop = mark.start()


def _line(part: str) -> tuple[str, bool]:
    """The line with the number, plain, without what may stand before it; whether it is the mark's own line."""
    head = part.lstrip(_BEFORE)
    own = "\n" not in part[: len(part) - len(head)]
    return plain(head.partition("\n")[0]).lstrip(_BEFORE), own


def _marked(text: str) -> Read | None:
    marks = list(_MARK.finditer(text))
    for place, (mark, part) in enumerate(_parts(marks, text)):
        if not _DIGIT.search(part):
            continue
        if mark["hashes"] is None:
            line, own = _line(_TAG.split(part, maxsplit=1)[0])
            found = _behind_words(line, Style(), own)
        else:
            found = _behind_hashes(part, num_marks=len(marks) - place)
        if found is not None:
            return found
    return None


def _behind_hashes(part: str, num_marks: int) -> Read | None:
    line, own = _line(part)
    heading = _HEADING.match(line)
    if heading and int(heading[1]) <= num_marks:  # the second heading has the number 2, or less
        return None
    if lead := _LEAD.match(line):
        line = line[lead.end() :]
    return first(line, minus=own) if _AT_NUMBER.match(line) else None


def _behind_words(line: str, style: Style, own: bool) -> Read | None:
    """The first number, behind words without a digit or a dot."""
    if not (words := _BEHIND_WORDS.match(line)):
        return None
    pair = words[0].rstrip(" $").endswith("between") and _PAIR.match(line, words.end())
    return Read(None) if pair else first(line, style, minus=own)


def _boxed(text: str) -> Read | None:
    """The last closed box that holds one quantity, or one chain."""
    if "oxed" not in text:
        return None
    for _, part in _parts(list(_BOX.finditer(text)), text):
        if (content := closed(part)) and (found := only(plain(content.replace("\n", " ").replace("~", " ")))):
            return found
    return None


def _said(text: str) -> Read | None:
    small = text.lower()
    small = small if len(small) == len(text) else text
    said: list[tuple[re.Match[str], Style]] = []
    for words in LANGUAGES.values():
        if (start := _last_of(words.noun, small)) is not None:
            style = Style(words.decimal_comma, words.dots_group)
            said += [(mark, style) for mark in words.mark.finditer(text, start)]
    said.sort(key=lambda each: each[0].start())
    for (_, style), (_, part) in zip(reversed(said), _parts([mark for mark, _ in said], text), strict=False):
        if _DIGIT.search(part):
            line, own = _line(part)
            if found := _behind_words(line, style, own):
                return found
    return None


def _last_of(noun: str, text: str) -> int | None:
    """A place before the last MOST_MARKS of it; None where there is none."""
    place = len(text)
    for _ in range(MOST_MARKS):
        if (found := text.rfind(noun, 0, place)) < 0:
            break
        place = found
    return max(0, place - BEFORE_NOUN) if place < len(text) else None


def _headed(text: str) -> Read | None:
    """`### 18` alone on its line, where it does not count the parts of the text."""
    start = text.rfind("\n", 0, max(0, len(text) - NEAR_END)) + 1
    if text.find("#", start) < 0:
        return None
    marks = list(_SMALL_HEADING.finditer(text, start))
    before = text.count("\n#", 0, start)
    for place, mark in enumerate(reversed(marks)):
        line = plain(mark[1]).strip()
        whole = None if _HEADING.match(line) else _ALONE.fullmatch(line)
        found, after = first(line, minus=True) if whole else None, text[mark.end() :]
        if whole is None or found is None or found.value is None:
            continue
        if whole["unit"] and "**" not in mark[1] and _DIGIT.search(after):  # ### 2 Solve for x
            continue
        if found.value > before + len(marks) - place or not after.strip():
            return found
    return None


def _at_the_end(text: str) -> Read | None:
    """The last number that can be read, with the line before it."""
    end = len(text)
    for _ in range(MOST_MARKS):
        if (digit := _last_digit(text, end)) < 0:
            break
        stop = text.find("\n", digit, min(end, digit + LONGEST))
        start = max(0, digit - LONGEST_LINE)
        if (line := text.rfind("\n", start, digit) + 1) or start == 0:
            start = line
        else:
            start = max(start, text.find(" ", start, digit))  # no number is cut in two
        if found := last(plain(text[start : stop if stop >= 0 else min(end, digit + LONGEST)])):
            return found
        end = start
    return None


def _last_digit(text: str, end: int) -> int:
    """Where it stands before `end`, or -1."""
    while end > 0:
        start = max(0, end - 4096)
        if found := _DIGIT.search(text[start:end][::-1]):
            return end - 1 - found.start()
        end = start
    return -1
