"""Quantities as people and models write them: a span is read whole, and only then is it a number or none.

    18   $18   18 USD   1,234.50   10 000   1'234   12,34,567   50%   18 cm^2   18k   1.5 million   2 1/2   3/4   1.8e3
    16 - 3 - 4 = 9        the end of a chain
    18 = 9 * 2            a chain whose end is a sum: the last part of it that is one quantity
    3:30   10-15   9 * 2   2 hours 30 minutes   3 sqrt(2)      whole, and no number

`plain` comes first: one way to write digits, signs, spaces, currencies and LaTeX. All is linear in the span.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from gsm8k_core.problems.gold import has_few_digits, plain_decimal
from gsm8k_core.scoring.answer_words import SCALES

MAX_SCALED_DIGITS = 20  # of 1e9, 2^10, 3 million: what is larger is no answer, and would only cost
MAX_WRITTEN_DECIMALS = 12  # a value with more is written as a fraction


@dataclass(frozen=True, slots=True)
class Read:
    """What a span says. `value` is None where it was read whole and is no number: a time, a range, an open sum."""

    value: Fraction | None


@dataclass(frozen=True, slots=True)
class Style:
    """How a language writes numbers where it differs from English: 1,5 and 1.234."""

    decimal_comma: bool = False
    dots_group: bool = False


ENGLISH = Style()


def first(text: str, style: Style = ENGLISH, *, minus: bool = False) -> Read | None:
    """The chain that begins with the first number of a plain text. None: no number that can be read.

    `minus`: a minus with a space behind it, at the very start, is a sign and not the mark of a list.
    """
    found = _tokens(text, style, minus)
    return _of_chain(next(_chains(text, found))) if found else None


def only(text: str) -> Read | None:
    """The same where the text holds one chain and no other number."""
    found = list(_chains(text, _tokens(text, ENGLISH, True)))
    return _of_chain(found[0]) if len(found) == 1 else None


def last(text: str) -> Read | None:
    """The chain that ends with the last number that can be read; an open sum in brackets is passed over."""
    tokens = [token for token in _tokens(text, ENGLISH, False) if not token.junk]
    while tokens:
        chain = _ending(text, tokens)
        read = _of_chain(chain)
        open_sum = read is not None and read.value is None and len(chain) > 1
        if not (open_sum and text[: chain[0][1].start].rstrip(" $").endswith("(")):
            return read
        del tokens[-len(chain) :]
    return None


def written(value: Fraction) -> str:
    """A plain decimal, or `p/q` where that has no end: what `first` reads again as the same value."""
    for decimals in range(MAX_WRITTEN_DECIMALS + 1):
        if 10**decimals % value.denominator == 0:
            digits = str(abs(value.numerator) * (10**decimals // value.denominator)).rjust(decimals + 1, "0")
            size = plain_decimal(digits[: len(digits) - decimals] + "." + digits[len(digits) - decimals :] + "0")
            return "-" + size if value < 0 else size
    return f"{value.numerator}/{value.denominator}"


# --- one way to write it --------------------------------------------------------------------------------------

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_ALIKE = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
    **dict.fromkeys("’ʼ＇‘", "'"),
    **dict.fromkeys("×✕✖⨉⋅·∙∗", "*"),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("≈≅≃", "≈"),
    **dict.fromkeys("→⇒⟹⟶", "→"),
    "٫": ".",
    "٬": ",",
    "٪": "%",
    "，": "，",  # groups between digits alone
    "\u02da": "°",
    "º": "°",
}
_WIDE_COMMA = re.compile("(?<=[0-9])，(?=[0-9]{3}(?![0-9]))")
_SHOWN = re.compile(r"<<[^<>\n]{0,80}>>(?=\s?[-$0-9.])")  # GSM8K's <<9*2=18>>18: the number comes again

_FRACTION = re.compile(r"\\[dtc]?frac\s?(?:\{([^{}]*)\}\s?\{([^{}]*)\}|([0-9])([0-9]))")
_SIMPLE = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")
_EXPONENT = re.compile(r"\^\s?\{\s?([-+]?[0-9]+)\s?\}")
_NAMES = {
    "times": "*",
    "cdot": "*",
    "ast": "*",
    "div": "÷",
    "pm": "±",
    "approx": "≈",
    "rightarrow": "→",
    "Rightarrow": "→",
    "implies": "→",
    "to": "→",
    "pi": "π",
    "sqrt": "√",
    "circ": "°",
}
_DEGREE = re.compile(r"\^\s{0,2}\{?\s{0,2}°\s?\}?")
_SPACES = re.compile(" {2,}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_LATEX = (("\\left", ""), ("\\right)", ")"), ("\\right]", "]"), ("{,}", ","), ("\\,", ""), ("\\!", ""), ("\\$", "$"))
_ESCAPED = re.compile(r"\\([%#&_{}])")

_CODES = """
    USD EUR GBP JPY CNY RMB INR RUB KRW THB KES TZS UGX AUD CAD CHF NZD SGD HKD TWD MXN BRL ZAR PHP IDR MYR VND BDT PKR
    LKR NGN GHS TRY SEK NOK DKK PLN CZK HUF ILS AED SAR EGP COP CLP ARS PEN Rs Re KSh Ksh TSh Tk Rp
"""
_DOLLARS = re.compile(r"(?<![A-Za-z])(?:US ?|CA|AU|NZ|HK|SG|NT|MX|[CARS])\$")
_CODE = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(_CODES.split())})\.?\s?(?=[-$0-9.])")
_UNIT_POWER = re.compile(
    r"(?<=[^\W\d_]|[.)}])\s?\^\s?\(?-?[0-9]{1,2}\)?"
    r"|(?<=\b[mM])[23](?![0-9A-Za-z])|(?<=\b(?:mm|cm|dm|km|in|ft|yd|mi|sq))[23](?![0-9A-Za-z])"
)
_INDEX = re.compile(r"(?<=\b[A-Za-z])_(?:\{[0-9]{1,2}\}|[0-9]{1,2}(?![0-9_]))")  # x_1


_STARRED_POWER = re.compile(r"(?<=[A-Za-z])\*\*[0-9](?![0-9*])")  # cm**2, and not is**18**
_MINUS_WORD = re.compile(r"\b(?:minus|negative) (?=\$?[0-9])", re.IGNORECASE)


def plain(text: str) -> str:
    """ASCII digits, `-` for a minus, `$` for a currency, one space for a space of any width; LaTeX as text."""
    if not text.isascii():
        text = _RAISED.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
        text = text.translate({ord(mark): _alike(mark) for mark in set(text) if mark > "\x7f"})
        text = _WIDE_COMMA.sub(",", text)
    text = _STARRED_POWER.sub("", text).replace("**", " ").replace("__", " ")
    text = _MINUS_WORD.sub("-", text)
    text = _INDEX.sub("", _SHOWN.sub("", text))
    if "\\" in text or "{" in text:
        text = _without_latex(text)
    text = _CODE.sub("$", _DOLLARS.sub("$", text))
    return _UNIT_POWER.sub("", text)


@lru_cache(maxsize=4096)
def _alike(mark: str) -> str:
    if mark in _ALIKE:
        return _ALIKE[mark]
    digit = unicodedata.decimal(mark, -1)
    if digit >= 0:
        return str(digit)
    if "\uff01" <= mark <= "\uff5e":
        return chr(ord(mark) - 0xFEE0)
    kind = unicodedata.category(mark)
    if kind == "No" and "⁄" in (parts := unicodedata.normalize("NFKC", mark)):
        return " " + parts.replace("⁄", "/")
    return {"Sc": "$", "Zs": " ", "Cf": ""}.get(kind, mark)


def _without_latex(text: str) -> str:
    for old, new in _LATEX:
        text = text.replace(old, new)
    text = _ESCAPED.sub(r"\1", text)
    text = _FRACTION.sub(_fraction, text)
    text = _EXPONENT.sub(r"^\1", text)
    text = _COMMAND.sub(lambda found: f" {_NAMES[found[1]]} " if found[1] in _NAMES else " ", text)
    text = _DEGREE.sub("°", text).replace("\\", " ")
    return _SPACES.sub(" ", text.replace("}^", "^").replace("{", " ").replace("}", " "))


def _fraction(found: re.Match[str]) -> str:
    above, below = (found[1], found[2]) if found[1] is not None else (found[3], found[4])
    if _SIMPLE.fullmatch(above.strip()) and _SIMPLE.fullmatch(below.strip()):
        return f" {above.strip()}/{below.strip()}"
    return f" ({above}) ÷ ({below})"


# --- numbers in their places ----------------------------------------------------------------------------------

_GROUPED = re.compile(
    r"(?!0[ '_])[0-9]{1,3}([ '_])[0-9]{3}(?:\1[0-9]{3})*(?:\.[0-9]+|,[0-9]{1,2}(?![0-9]))?(?! ?/|[0-9]|[.,'_][0-9])"
)
_DOTTED = re.compile(r"[0-9]{1,3}(?:(?:\.[0-9]{3})+,[0-9]{1,2}|(?:\.[0-9]{3}){2,})(?![0-9]|[.,][0-9])")
_DOTS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3})+(?:,[0-9]{1,2})?(?![0-9]|[.,][0-9])")
_COMMA = re.compile(r"(?:[0-9]+,[0-9]{1,2}|0,[0-9]+)(?![0-9]|[.,][0-9])")
_NUMBER = re.compile(r"(?:[0-9]+(?:,+[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)(?![.,]?[0-9])")
_JUNK = re.compile(r"[0-9.,]*[0-9]")
_START = re.compile(r"\.?[0-9]")
_OVER = re.compile(r" ?/ ?")
_TENS = re.compile(
    r"[eE]([-+]?[0-9]{1,3})(?![0-9A-Za-z])| {0,3}(?:\*|[xX]) {0,3}10 ?\^ ?\(?([-+]?[0-9]{1,3})\)?(?![0-9])"
)
_POWER = re.compile(r" ?\^ ?\(?([0-9]{1,3})\)?(?![0-9])")
_CLOCK = re.compile(r":([0-9]{1,2})(?::([0-9]{2}))?(?![0-9])")
_COUNTED = re.compile(r"(?:day|week|month|year|step|part|case|round|option|note|line) ?$", re.IGNORECASE)  # Week 3:210
_PART = re.compile(r" {1,3}(?:and |& ?)?([0-9]{1,4}) ?/ ?([0-9]{1,4})(?![0-9/]|[.,][0-9])")
_HALF = re.compile(r" and (?:a |one )?(half|third|quarter)\b", re.IGNORECASE)
_HALVES = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
_SCALE = re.compile(r"[ -]{0,3}([^\W\d_]{1,10})\b")
_UNSPACED = "|".join(word for word in SCALES if not word.isascii() and (len(word) == 1 or not word.isalpha()))
_JOINED_SCALE = re.compile(f" ?({_UNSPACED}|千(?![克米瓦卡升公]))")  # scripts without spaces or with marks in words
_THOUSAND = re.compile(r"(?<!401)[kK](?![A-Za-z0-9])")
_NOTHING_MORE = ("", ".", ",", ")", "=", "+", "%", ";", "\n")  # these never belong to the number before them
_LARGE = {"B": 9, "T": 12}  # behind an amount of money alone: 2B is a pencil
_ROOT = re.compile(r" ?\*? ?(?:√|π|sqrt\b|pi\b)")
_BELOW = {  # a unit, and the smaller one that may follow: 2 hours 30 minutes
    "hour|hr|h": "minute|min|m",
    "minute|min": "second|sec|s",
    "day": "hour|hr",
    "week|wk": "day",
    "month": "week|day",
    "year|yr": "month",
    "foot|feet|ft|'": 'inche|inch|in|"',
    "pound|lb": "ounce|oz",
    "meter|metre|m": "centimeter|centimetre|cm",
}
_LESSER = "|".join(
    f"(?:{more})(?:(?<=')|s?\\.?) ?(?:and |& |, ?(?:and )?)?[0-9][0-9.]* ?(?:{less})(?:(?<=\")|s?\\b)"
    for more, less in _BELOW.items()
)
_COMPOUND = re.compile(f" ?(?:{_LESSER})", re.IGNORECASE)
_CENTS = re.compile(r" ?(dollars?)? ?(?:and |& |, )([0-9]{1,2}) ?(?:cents?\b|¢)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One quantity in its place; `junk`: digits that are no number that could be an answer."""

    value: Fraction | None
    start: int
    end: int
    junk: bool = False


def _tokens(text: str, style: Style, minus: bool) -> list[Quantity]:
    found: list[Quantity] = []
    place = 0
    while start := _START.search(text, place):
        token = _token(text, start.start(), place, style, minus, bool(found))
        found.append(token)
        place = token.end
    return found


def _token(text: str, start: int, before: int, style: Style, minus: bool, follows: bool) -> Quantity:
    """The quantity whose first digit, or dot, is at `start`; `before`: where the one before it ended."""
    size, end = _size(text, start, style)
    if size is None:
        return Quantity(None, start, end, junk=True)
    first_sign, negative, money = _sign(text, start, before, minus, follows)
    value, end, junk = _whole(text, size, first_sign, end, money)
    if text[:first_sign].rstrip(" (").endswith(("√", "sqrt", "π")):
        value = None
    if value is not None and negative:
        value = -value
    return Quantity(value, first_sign, end, junk)


def _size(text: str, start: int, style: Style) -> tuple[Fraction | None, int]:
    """The number alone, and where it ends."""
    if found := _GROUPED.match(text, start):
        plainer = found[0].replace(found[1], "")
        size = plainer.replace(",", ".") if re.search(r",[0-9]{1,2}$", plainer) else plainer
    elif found := (_DOTS if style.dots_group else _DOTTED).match(text, start):
        size = found[0].replace(".", "").replace(",", ".")
    elif style.decimal_comma and (found := _COMMA.match(text, start)):
        size = found[0].replace(",", ".")
    elif found := _NUMBER.match(text, start):
        size = found[0].replace(",", "")
    else:
        found = _JUNK.match(text, start)
        return None, found.end() if found else start + 1
    if not has_few_digits(size):
        return None, found.end()
    return Fraction(int(size)) if size.isdigit() else Fraction(size), found.end()


def _sign(text: str, start: int, before: int, minus: bool, follows: bool) -> tuple[int, bool, bool]:
    """Where sign and currency begin, whether it is a minus, and whether there is a currency.

    A hyphen after a digit, a letter or a bracket is a range or a difference: the 15 of 10-15 has no sign.
    """
    head = text[before:start]
    money = head.rstrip(" ").endswith("$")
    bare = head.rstrip(" ").removesuffix("$") if money else head
    close = bare.rstrip(" ")
    if not close.endswith("-"):
        return before + len(bare) if money else start, False, money
    place = len(close) - 1
    left = head[:place]
    if left.endswith("$"):
        left, money = left[:-1], True
    spaced = head[place + 1 :].strip("$") != ""
    prior = left.rstrip(" ")
    if spaced:
        negative = prior.endswith(("=", "≈", "(")) or (minus and not prior and not follows)
    else:
        negative = not (left[-1:].isalnum() or left[-1:] in (")", "-")) and not (follows and not prior)
    if not negative:
        return before + len(bare) if money and not left.endswith("$") else start, False, money
    return before + len(left), True, money


def _whole(text: str, size: Fraction, start: int, end: int, money: bool) -> tuple[Fraction | None, int, bool]:
    """What stands behind the digits and belongs to them: the value, the end, and whether it is too large."""
    if text[end : end + 1] in _NOTHING_MORE:
        return size, end, False
    if found := _TENS.match(text, end):
        return _scaled(size, int(found[1] or found[2]), found.end())
    if found := _POWER.match(text, end):
        large = size != 0 and len(str(size.numerator)) * int(found[1]) > MAX_SCALED_DIGITS
        return (None, found.end(), True) if large else (size ** int(found[1]), found.end(), False)
    if (found := _CLOCK.match(text, end)) and not _COUNTED.search(text, max(0, start - 8), start):
        # GSM8K's own golds say 2 for 2:00 pm; any other time is no number.
        full = found[1] == "00" and found[2] in (None, "00")
        return (size if full else None), found.end(), False
    value, end = _divided(text, size, end)
    if value is None or (found := _COMPOUND.match(text, end)):
        return None, end if value is None or not found else found.end(), False
    if found := _ROOT.match(text, end):
        return None, found.end(), False
    if (found := _CENTS.match(text, end)) and (money or found[1]):
        return value + Fraction(int(found[2]), 100), found.end(), False
    return _by_words(text, value, end, money)


def _divided(text: str, size: Fraction, end: int) -> tuple[Fraction | None, int]:
    """With the fraction behind it: 3/4, 2 1/2, 2 and a half."""
    if (over := _OVER.match(text, end)) and (below := _NUMBER.match(text, over.end())) and has_few_digits(below[0]):
        divisor = Fraction(below[0].replace(",", ""))
        return (size / divisor if divisor else None), below.end()
    if size.denominator == 1 and (found := _PART.match(text, end)) and 0 < int(found[1]) < int(found[2]):
        return size + Fraction(int(found[1]), int(found[2])), found.end()
    if found := _HALF.match(text, end):
        return size + _HALVES[found[1].lower()], found.end()
    return size, end


def _by_words(text: str, value: Fraction, end: int, money: bool) -> tuple[Fraction | None, int, bool]:
    """Times the words behind it: 18k, 1.5 million, 3 hundred thousand. A dozen is a unit: GSM8K counts in dozens."""
    power = 0
    if found := _THOUSAND.match(text, end):
        power, end = 3, found.end()
    elif text[end : end + 1] == "M" and not text[end + 1 : end + 2].isalnum():
        power, end = 6, end + 1
    elif money and text[end : end + 1] in _LARGE and not text[end + 1 : end + 2].isalnum():
        power, end = _LARGE[text[end]], end + 1
    elif found := _JOINED_SCALE.match(text, end):
        power, end = SCALES.get(found[1], 3), found.end()
    else:
        while (found := _SCALE.match(text, end)) and (more := SCALES.get(found[1].lower())):
            power, end = power + more, found.end()
    return _scaled(value, power, end) if power else (value, end, False)


def _scaled(value: Fraction, power: int, end: int) -> tuple[Fraction | None, int, bool]:
    if abs(power) + len(str(value.numerator)) > MAX_SCALED_DIGITS and value:
        return None, end, True
    return value * Fraction(10) ** power, end, False


# --- chains ---------------------------------------------------------------------------------------------------

Chain = list[
    tuple[str, Quantity]
]  # how each is joined to the one before: `=`, `op`, `loose`, `to`, or nothing for the first
_EQUALS = re.compile("[=≈→]+")
_OPERATORS = ("times", "plus", "minus", "multiplied by", "divided by")
_CONJUNCTIONS = """
    because since as so and or which where when if but with then thus hence therefore than that after before
"""
_NO_UNITS = frozenset(_CONJUNCTIONS.split())
MOST_WORDS = 3  # of a unit


def _ending(text: str, tokens: list[Quantity]) -> Chain:
    """The chain of the last token. Here "from 3 to 18" are two numbers."""
    place = len(tokens) - 1
    chain: Chain = [("", tokens[place])]
    while place and (joint := _joint(text[tokens[place - 1].end : tokens[place].start])) in ("=", "op", "loose"):
        chain[-1] = (joint, tokens[place])
        place -= 1
        chain.append(("", tokens[place]))
    return _firm(chain[::-1])[-1]


def _chains(text: str, tokens: list[Quantity]) -> Iterator[Chain]:
    """The tokens, cut where two are joined by no sign."""
    chain: Chain = []
    for place, token in enumerate(tokens):
        joint = _joint(text[tokens[place - 1].end : token.start]) if place else ""
        if chain and not joint:
            yield from _firm(chain)
            chain = []
        chain.append((joint, token))
    if chain:
        yield from _firm(chain)


def _firm(chain: Chain) -> list[Chain]:
    """Without an equals sign, "18 cups - 3 for each" and "50% of 36" are no sums: cut there."""
    if any(joint == "=" for joint, _ in chain):
        return [chain]
    parts: list[Chain] = [[]]
    for joint, token in chain:
        if joint == "loose":
            parts.append([])
        parts[-1].append((joint, token))
    return parts


def _joint(gap: str) -> str:
    """How the text between two quantities joins them; nothing where it does not."""
    between = gap.strip(" \t()[]$")
    if not between:
        return ""
    equals = list(_EQUALS.finditer(between))
    if equals:
        left, right = between[: equals[0].start()], between[equals[-1].end() :]
        return "=" if _is_unit(left) and _is_unit(right) else ""
    if between[-1] in "+-*/÷±~":
        unit = between[:-1]
    elif between.lower() in _OPERATORS or between.endswith((" x", " X")) or between in ("x", "X"):
        unit = between[:-1] if between[-1] in "xX" else ""
    else:
        word = between.lower().removeprefix("%").strip()
        return {"to": "to", "of": "loose"}.get(word, "")
    return ("op" if not unit.strip(" %$") else "loose") if _is_unit(unit) else ""


def _is_unit(text: str) -> bool:
    words = re.split(r"[\s/]+", text.strip(" .()[]$%°'\"")) if text.strip() else []
    return len(words) <= MOST_WORDS and all(
        not word or (word.isalpha() and word.lower() not in _NO_UNITS) for word in words
    )


def _of_chain(chain: Chain) -> Read | None:
    """The last part between its equals signs that is one quantity."""
    parts: list[list[Quantity]] = [[]]
    for joint, token in chain:
        if joint == "=":
            parts.append([])
        parts[-1].append(token)
    for part in reversed(parts):
        if len(part) == 1:
            return None if part[0].junk else Read(part[0].value)
    return Read(None)
