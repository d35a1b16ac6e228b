"""Rules that others publish, each as two string functions: what it reads, and whether that equals `#### N`.

A published rule is never improved here: its failures are part of the numbers that people compare with.
Sources, read for their behaviour (no code is taken): grade-school-math; lm-eval 0.4.13, tasks gsm8k and gsm8k_cot;
Qwen2.5-Math, evaluation/parser.py and grader.py; verl 0.9.1, utils/reward_score/gsm8k.py; inspect_ai 0.3.285,
scorer `match(numeric=True)`, which inspect_evals' gsm8k uses.
Every function is linear in its text and raises on no string: a broken model may write anything.
"""

from __future__ import annotations

import math
import re
import unicodedata

# --- openai, and lm-eval's strict, flexible and cot -----------------------------------------------------------

MARKED = re.compile(r"#### (-?[0-9.,]+)")
# lm-eval's `(-?[$0-9.,]{2,})|(-?[0-9]+)`, mirrored: its last match is the first one from the end.
FLEXIBLE_MIRRORED = re.compile(r"(?:[$0-9.,]{2,}|[0-9])-?")
# The last dot is lm-eval's, unescaped: it eats a character, so `The answer is 18` gives 1.
COT = re.compile(r"The answer is (-?[0-9.,]+).")
_FINAL_DOT = re.compile(r"\.$")


def openai(completion: str) -> str | None:
    found = MARKED.search(completion)
    return found[1].replace(",", "") if found else None


def openai_equal(extracted: str, target: str) -> bool:
    return extracted == openai(target)


def strict(completion: str) -> str | None:
    found = MARKED.search(completion)
    return found[1] if found else None


def flexible(completion: str) -> str | None:
    found = FLEXIBLE_MIRRORED.search(completion[::-1])
    return found[0][::-1] if found else None


def cot(completion: str) -> str | None:
    found = COT.search(completion)
    return found[1] if found else None


def harness_equal(extracted: str, target: str) -> bool:
    return _harness_form(extracted) == _harness_form(target)


def _harness_form(text: str) -> str:
    """lm-eval's exact_match: its regexes_to_ignore in their order, then ignore_case."""
    text = text.replace(",", "").replace("$", "")
    # Its `(?s).*#### ` takes quadratic time where there is no mark; this is the same cut.
    text = text.rpartition("#### ")[2]
    return _FINAL_DOT.sub("", text).lower()


# --- verl -----------------------------------------------------------------------------------------------------

VERL_TAIL = 300  # characters


def verl(completion: str) -> str | None:
    found: list[str] = MARKED.findall(completion[-VERL_TAIL:])
    return found[-1].replace(",", "") if found else None


# --- qwen-math ------------------------------------------------------------------------------------------------
# Numbers only: its list of units, its number words and its symbolic equality (SymPy) are left out.

QWEN_LONGEST = 200  # characters; what is longer is prose, shown by its start and never right
QWEN_TOLERANCE = 1e-4  # relative
_QWEN_NUMBER = re.compile(r"-?\d*\.?\d+")
_LINE_END = re.compile(r"\n\s*")
_LAST_TEXT = re.compile(r"\\text\{.*?\}$")
_TEXT = re.compile(r"\\text\{(.*?)\}")
_ZEROS = re.compile(r"(\d+)\.0*([^\d]|$)")
_BRACKETS = str.maketrans("", "", "{}()")


def qwen_math(completion: str) -> str | None:
    """The last `boxed`, else what follows the last "he answer is" to the end, else the last number."""
    return _qwen_form(_qwen_part(completion)) or None


def qwen_equal(extracted: str, target: str) -> bool:
    """Equal as texts, or within 1e-4 of the gold, of its hundredth or of its hundredfold."""
    gold = _qwen_form(target.removeprefix("#### "))
    if extracted.lower() == gold.lower() or extracted.translate(_BRACKETS).lower() == gold.lower():
        return True
    try:
        read, wanted = float(extracted.replace(",", "")), float(gold.replace(",", ""))
    except ValueError:
        return False
    return any(math.isclose(read, wanted * by, rel_tol=QWEN_TOLERANCE) for by in (0.01, 1, 100))


def _qwen_part(text: str) -> str:
    if "final answer is $" in text and "$. I hope" in text:
        return text.partition("final answer is $")[2].partition("$. I hope")[0]
    if "boxed" in text:
        after = text.rpartition("boxed")[2]
        return (closed(after[1:]) or after[1:]) if after.startswith("{") else after.partition("$")[0]
    for mark in ("he answer is", "final answer is"):
        if mark in text:
            return text.rpartition(mark)[2]
    if "答案是" in text:
        return text.split("答案是", 2)[1].strip().partition("\n\n")[0]
    numbers: list[str] = _QWEN_NUMBER.findall(text.replace(",", ""))
    return numbers[-1] if numbers else ""


def _qwen_form(text: str) -> str:
    """What its strip_string leaves of something that may be a number."""
    text = _LINE_END.sub("", text.strip()).removeprefix(":").removesuffix(".").removesuffix("/").strip().rstrip(".")
    if len(text) > QWEN_LONGEST:
        return text[:QWEN_LONGEST] + "..."
    for part in ("\\!", "\\left", "\\right"):
        text = text.replace(part, "")
    text = text.replace("\\{", "{").replace("\\}", "}")
    text = _LAST_TEXT.sub("", text).strip() or text
    for part in ("^{\\circ}", "^\\circ", "\\$", "$", "\\(", "\\)"):
        text = text.replace(part, "")
    text = _TEXT.sub(r"\1", text)
    for part in ("x=", "y=", "z=", "\\%", "%"):
        text = text.replace(part, "")
    text = _ZEROS.sub(r"\1\2", text.replace(" .", " 0.").replace("{.", "{0."))
    text = "0" + text if text.startswith(".") else text
    left, _, right = text.partition("=")
    return (right if len(left) <= 2 and text.count("=") == 1 else text).replace(" ", "")


def closed(text: str) -> str:
    """`text` up to the brace that closes it; empty if it is never closed."""
    depth, start = 1, 0
    while depth and (close := text.find("}", start)) >= 0:
        depth += text.count("{", start, close) - 1
        start = close + 1
    return text[: start - 1] if depth == 0 else ""


# --- inspect --------------------------------------------------------------------------------------------------
# Without its Chinese numerals: a word that holds one is no number here.

_ESCAPE = re.compile(r"\\(?=[$,£€*_])")
_LOOSE_DOTS = re.compile(r"\.+(?!\d)")
_DROPPED = str.maketrans("", "", "$,£€*_")
_AROUND = "!?:;()[]{}'\"`"
_GROUPS = "，﹐、٬'’ʼ＇"
_SIGNS = re.compile(r"[-−﹣－+＋﹢]*")
_MINUS = "-−﹣－"
_PLUS = "+＋﹢"
_LATE_SIGN = re.compile(f"e[{_GROUPS}]+[{_MINUS}{_PLUS}]")
_ASCII_NUMBER = re.compile(r"[-+]*['0-9.][-+'0-9.e]*")
_INSPECT_MARKS = 100  # different ones in a number; ours alone: bounds the time for 100 kB of one word
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_PLAIN = re.compile(r"[0-9.]+(?:e[-+]?[0-9]+)?")


def inspect(completion: str) -> str | None:
    """The last word that is a number, to five significant digits: 123456 and 123457 both give 1.2346e+05."""
    words = {word.strip(_AROUND): None for word in reversed(_inspect_words(completion))}  # each once, in order
    for word in filter(_may_be_number, words):
        number = _inspect_number(word)
        if number is not None:
            return format(number, ".5g")
    return None


def inspect_equal(extracted: str, target: str) -> bool:
    return extracted == inspect(target.removeprefix("#### "))


def _inspect_words(text: str) -> list[str]:
    text = _ESCAPE.sub("", text.strip().casefold()).translate(_DROPPED)
    return _LOOSE_DOTS.sub("", text).split()


def _may_be_number(word: str) -> bool:
    """False only for what is none: the readings below take 20 times as long."""
    if len(set(word)) > _INSPECT_MARKS:
        return False
    if word.isascii():
        return _ASCII_NUMBER.fullmatch(word) is not None
    first = word.lstrip(_MINUS + _PLUS)[:1]
    return first != "" and (unicodedata.numeric(first, -1) >= 0 or first in _GROUPS + ".٫．")


def _inspect_number(word: str) -> float | None:
    for reading in (float, _unicode_number):
        try:
            number = reading(word)
        except (ValueError, ArithmeticError):
            continue
        if math.isfinite(number):
            return number
    return None


def _unicode_number(word: str) -> float:
    """Signs, then digits of any script with grouping marks, at most one fraction sign, and a power."""
    signs = _SIGNS.match(word)
    start = signs.end() if signs else 0
    sign = (-1.0) ** sum(word.count(mark, 0, start) for mark in _MINUS)
    word = word[start:]
    if len(word) == 1:
        return sign * unicodedata.numeric(word)
    base = word.rstrip(_GROUPS)
    head = base.rstrip(_RAISED)
    head = head[:-1] if head != base and head.endswith(("⁻", "⁺")) else head
    if head in ("", base):
        return sign * _unicode_size(word)
    return float((sign * _unicode_size(head)) ** int(base[len(head) :].translate(_SUPERSCRIPTS)))


def _unicode_size(text: str) -> float:
    fractions = {mark for mark in set(text) if 0 < unicodedata.numeric(mark, 0) < 1}
    if not fractions:
        return unicodedata.numeric(text) if len(text) == 1 else float(_ascii_digits(text))
    mark = fractions.pop()
    head, _, tail = text.partition(mark)
    if fractions or tail.strip(_GROUPS):
        raise ValueError("a fraction stands last, and alone")
    return (_unicode_size(head) if head else 0.0) + unicodedata.numeric(mark)


def _ascii_digits(text: str) -> str:
    table: dict[int, str] = {ord(mark): "" for mark in _GROUPS} | {ord("٫"): ".", ord("．"): "."}
    table |= {ord(mark): "-" for mark in _MINUS} | {ord(mark): "+" for mark in _PLUS}
    digits = {ord(mark): unicodedata.digit(mark, -1) for mark in set(text)}
    plain = text.translate({mark: str(digit) for mark, digit in digits.items() if digit >= 0} | table)
    return plain if _PLAIN.fullmatch(plain) and not _LATE_SIGN.search(text) else ""
