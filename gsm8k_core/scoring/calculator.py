"""Arithmetic as it stands in GSM8K's steps: a bounded evaluator, without eval and ast, and the claims that it checks.

    sum      product, then + or - product, any number of times
    product  factor, then * / // x × · ÷ factor; a bracket right after a number or a bracket multiplies: 2(3+4)
    factor   any signs, a number or (sum), at most one %: 20% is 1/5

`$` is skipped, `1,234` is a thousand, LaTeX's \\times \\cdot \\div \\$ \\% are read; `//` rounds down (it is in GSM8K).
Numbers are exact fractions. Length, depth and digits are bounded, so that time and memory are; there is no power.

A claim is `expression = number`: `<<48/2=24>>`, or in the text `48 / 2 = 24`, `= $24`, `= 24%`, `= 1,200`. The finder
would rather miss a wrong claim than call a right one wrong. It does not see units between (`5 apples * 3`), fractions
such as \\frac{1}{2}, mixed numbers, powers, a result on the next line, and an unknown `x`. It is misled by words that
change a number (`twice 5 + 3 = 13`) and by loose writing: `5 x 1/2 = 10 halves` stands in GSM8K.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, islice, pairwise
from typing import Literal, NamedTuple

from gsm8k_core.problems.gold import MAX_DIGITS
from gsm8k_core.types import DataError

MAX_LENGTH = 200  # characters of one expression; GSM8K's longest has 36
MAX_DEPTH = 20  # nested brackets
MAX_CLAIMS = 1_000  # in one text


class CalculatorError(ValueError):
    """The text is no expression that this calculator reads. Its only exception."""


class Token(NamedTuple):
    """One piece of an expression. `symbol`: 0 a number, + - * / // x ( ) % operators, = ~ equals signs, ? the rest."""

    symbol: str
    text: str
    start: int
    end: int


_TOKEN = re.compile(
    r"(?P<number>[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<blank>(?:[ \t\u00a0\u202f]|\\?\$)+)"
    r"|(?P<sign>//|\\(?:times|cdot|div|approx)(?![A-Za-z])|\\?%|(?<![A-Za-z])[xX](?![A-Za-z])|[-+*/()=×·÷−–≈])"
    r"|(?P<other>[A-Za-z]+|[^0-9A-Za-z .$\\\t\u00a0\u202f%()+*/=×·÷−–≈-]+|.)",
    re.DOTALL,
)
_SIGNS = {
    "×": "*",
    "·": "*",
    "\\times": "*",
    "\\cdot": "*",
    "÷": "/",
    "\\div": "/",
    "−": "-",
    "–": "-",
    "\\%": "%",
    "X": "x",
    "≈": "~",
    "\\approx": "~",
}
_VALUES = ("0", ")", "%")  # what a value ends with
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def calculate(expression: str) -> Fraction:
    """The exact value of an arithmetic expression; CalculatorError for whatever is none."""
    return value_of(list(islice(tokens(expression), MAX_LENGTH + 1)))  # one too many is too long


def tokens(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Token]:
    """The pieces of a part of `text` without blanks and dollar signs. Linear; unreadable numbers are `?`."""
    for found in _TOKEN.finditer(text, start, end):
        piece = found[0]
        if found.lastgroup == "number":
            yield Token("0" if _is_number(piece) else "?", piece, *found.span())
        elif found.lastgroup != "blank":
            yield Token(_SIGNS.get(piece, piece) if found.lastgroup == "sign" else "?", piece, *found.span())


def value_of(found: Sequence[Token]) -> Fraction:
    """The exact value of an expression's tokens."""
    if found and found[-1].end - found[0].start > MAX_LENGTH:
        raise CalculatorError(f"an expression of more than {MAX_LENGTH} characters is not read")
    reader = _Reader(found)
    value = reader.sum()
    if reader.next() != "":
        raise CalculatorError(f"unexpected {reader.next()!r} in an expression")
    return value


def written(value: Fraction) -> str:
    """As a person writes it: 24, 0.5, and at most four decimals of what has no end: 33.3333."""
    if value.denominator == 1:
        return str(value.numerator)
    exact = next((places for places in range(1, 9) if (value * 10**places).denominator == 1), 4)
    units = round(abs(value) * 10**exact)
    whole, part = divmod(units, 10**exact)
    return f"{'-' if value < 0 and units else ''}{whole}.{part:0{exact}d}"


def _is_number(piece: str) -> bool:
    """No more than MAX_DIGITS digits, and commas only between thousands."""
    return sum(map(str.isdigit, piece)) <= MAX_DIGITS and ("," not in piece or bool(_GROUPED.fullmatch(piece)))


class _Reader:
    """Recursive descent over tokens, one token ahead."""

    def __init__(self, found: Sequence[Token]) -> None:
        self._tokens = found
        self._at = self._depth = 0

    def next(self) -> str:
        return self._tokens[self._at].symbol if self._at < len(self._tokens) else ""

    def _take(self) -> Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def sum(self) -> Fraction:
        value = self._product()
        while self.next() in ("+", "-"):
            value += self._product() if self._take().symbol == "+" else -self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while (sign := self.next()) in ("*", "/", "//", "x", "("):
            if sign == "(" and self._tokens[self._at - 1].end != self._tokens[self._at].start:
                break  # 2(3+4) multiplies, 2 (3+4) is a remark
            if sign != "(":
                self._take()
            # `2x + 5 = 15` is algebra; only a number or a bracket can follow a letter that multiplies.
            if sign == "x" and self.next() not in ("0", "("):
                raise CalculatorError("an x that is no multiplication")
            value = _apply(sign, value, self._factor())
        return value

    def _factor(self) -> Fraction:
        negative = False
        while self.next() in ("+", "-"):
            negative ^= self._take().symbol == "-"
        value = self._bracket() if self.next() == "(" else self._plain()
        if self.next() == "%":
            self._take()
            value /= 100
        return -value if negative else value

    def _plain(self) -> Fraction:
        if self.next() != "0":
            raise CalculatorError(f"a number is missing before {self.next()!r} in an expression")
        return Fraction(self._take().text.replace(",", ""))

    def _bracket(self) -> Fraction:
        self._take()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CalculatorError(f"more than {MAX_DEPTH} brackets in one another")
        value = self.sum()
        if self.next() != ")":
            raise CalculatorError("a bracket is not closed")
        self._take()
        self._depth -= 1
        return value


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign not in ("/", "//"):
        return left * right
    if right == 0:
        raise CalculatorError("a division by zero")
    return left / right if sign == "/" else Fraction(left // right)


# --- in place of the model --------------------------------------------------------------------------------------------

NEAR = 16  # tokens that are decoded first: most annotations are open for fewer
FAR = MAX_LENGTH + NEAR  # and at most: none is shorter than a character, but for halves of one
# An annotation that is open, up to its one equals sign; what shares a token with that sign stands behind it.
_OPEN = re.compile(r"<<([^<>=\n]*)=([^<>=\n]*)\Z")
_CUT = re.compile(r"[^A-Za-wyz<>=\n]*=[^A-Za-z<>=\n]*\Z")  # the same without its beginning


def result_of(expression: str) -> str:
    """What stands behind the equals sign in GSM8K's train rows, in the form that most of them have: 24, 7.5, .5.

    A whole number is bare (98 % of them), decimals are as few as are exact (72 %), and below one no zero comes before
    the point (59 %). What has no end, or more than eight decimals, is rounded to four, as `written` does; GSM8K has
    none such. CalculatorError for what is no expression, a division by zero among them.
    """
    return re.sub(r"\A(-?)0\.", r"\1.", written(calculate(expression)))


class Calculator:
    """Sampling.force: where an answer's text ends in `<<expr=`, the result of expr and `>>` come next.

    It is asked after every token, and decodes only where that token holds an equals sign. Where expr cannot be read,
    the model goes on by itself. Raises DataError, when it is made, for a tokenizer that cannot write a result there.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Sequence[Sequence[int]]], decode: Callable[[Sequence[int]], str]
    ) -> None:
        """`encode` takes several texts and gives no special tokens, `decode` leaves them out."""
        self._encode, self._decode = encode, decode
        self._equals: dict[int, bool] = {}
        self(encode(["<<48/2="])[0])

    def __call__(self, tokens: Sequence[int]) -> Sequence[int]:
        last = tokens[-1]
        if last not in self._equals:
            self._equals[last] = "=" in self._decode([last])
        if not self._equals[last]:
            return ()
        tail = list(tokens[-NEAR:])
        text = self._decode(tail)
        if len(tokens) > NEAR and _CUT.fullmatch(text):
            tail = list(tokens[-FAR:])
            text = self._decode(tail)
        found = _OPEN.search(text)
        if found is None:
            return ()
        try:
            rest = _rest(result_of(found[1]), found[2])
        except CalculatorError:
            return ()
        return self._encoded(found[0], f"{rest}>>", tail, text)

    def _encoded(self, opened: str, rest: str, tail: list[int], text: str) -> Sequence[int]:
        """`rest` as it is encoded behind `opened`, or by itself where the two would share a token."""
        head, whole, alone = self._encode([opened, opened + rest, rest])
        ways = [whole[len(head) :], alone] if list(whole[: len(head)]) == list(head) else [alone]
        for way in ways:
            if self._decode([*tail, *way]) == text + rest:
                return way
        raise DataError(f"this tokenizer cannot write {rest!r} behind {opened!r}; leave --calculator out")


def _rest(result: str, begun: str) -> str:
    """What is left of a result that the token with the equals sign has begun: `=-`, `=$`, `= `.

    CalculatorError where it began as another one.
    """
    begun = begun.strip(" $")
    if not result.startswith(begun):
        raise CalculatorError(f"{begun} is not how {result} begins")
    return result[len(begun) :]


# --- claims -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """One `expression = number`. Right: equal, or rounded as a person would; see _is_right."""

    kind: Literal["annotation", "text"]
    start: int  # in characters
    expression: str  # as it is written, without annotations
    stated: str
    value: Fraction  # what the expression is
    result: Fraction  # what the text says it is
    right: bool


_ANNOTATION = re.compile(r"<<([^<>=\n]*)=([^<>\n]*)>>")
# Marks of Markdown and LaTeX that stand around numbers; 2**3 is none of them.
_MARKUP = re.compile(r"(?<![0-9)])\*\*|\*\*(?![0-9(])|\\boxed\{")
_LINE = re.compile(r"^([^\S\n]*+)[^\n=≈\\]*+(?:\\(?!approx)[^\n=≈\\]*+)*+(?:[=≈]|\\approx)[^\n]*+", re.MULTILINE)
# Before an expression: part of a word, a power, a time, a wrongly written number.
_DOUBT_BEFORE = re.compile(r"(?:[\^_}{\\√][ \t]*|\w|[0-9][:.,])\Z")
# After a result: an unknown, a power, the rest of a number, or a unit that changes it.
_DOUBT_AFTER = re.compile(
    r"[A-Za-z](?![A-Za-z])|[ \t]*[xX](?![A-Za-z])|[ \t]*[-+*/–−][ \t]*[A-Za-z](?![A-Za-z])|[\^_{]|:[0-9]|\\,[0-9]"
    r"|[ \t]*\\(?:sqrt|d?frac|pi)|[ \t]*(?:hundred|thousand|million|billion|dozen|cents?|remainder|percent)\b"
)


def find_claims(text: str) -> list[Claim]:
    """The claims that can be read, at most MAX_CLAIMS, in the order of the text. Linear; raises on no string."""
    found: list[Claim] = []
    for match in islice(_ANNOTATION.finditer(text), MAX_CLAIMS):
        left, right = list(tokens(text, *match.span(1))), list(tokens(text, *match.span(2)))
        claim = _claim("annotation", text, left, right, "=") if left and right else None
        found.extend([claim] if claim else [])
    text = _MARKUP.sub(_blank, _ANNOTATION.sub(_blank, text))
    in_text = (claim for line in _LINE.finditer(text) for claim in _in_line(text, line))
    return sorted([*found, *islice(in_text, MAX_CLAIMS)], key=lambda claim: claim.start)[:MAX_CLAIMS]


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _in_line(text: str, line: re.Match[str]) -> Iterator[Claim]:
    """`a = b = c` claims a = b and b = c."""
    for read, run in groupby(tokens(text, *line.span()), key=lambda token: token.symbol != "?"):
        parts, equals = _split(run) if read else ([], [])
        for number, sign in enumerate(equals):
            left = _expression_before(parts[number], text, line.end(1), chained=number > 0)
            right = _expression_after(parts[number + 1])
            has_operator = any(
                one.symbol in _VALUES and two.symbol not in (*_VALUES, "(") for one, two in pairwise(left)
            )
            if right and has_operator:  # -5 = -5 claims nothing
                claim = _claim("text", text, left, right, sign)
                if claim and (claim.right or not _is_doubtful(left, right, text)):
                    yield claim


def _split(run: Iterable[Token]) -> tuple[list[list[Token]], list[str]]:
    """The parts between a run's equals signs, and the signs."""
    parts: list[list[Token]] = [[]]
    equals = []
    for token in run:
        if token.symbol in ("=", "~"):
            equals.append(token.symbol)
            parts.append([])
        else:
            parts[-1].append(token)
    return parts, equals


def _joined(left: Token, right: Token) -> bool:
    """Whether two neighbours can be in one expression: not two values beside one another, such as 3 1/2."""
    beside = left.symbol in _VALUES and right.symbol in ("0", "(")
    return not beside or (right.symbol == "(" and left.symbol != "%" and left.end == right.start)


def _expression_before(part: list[Token], text: str, indent: int, chained: bool) -> list[Token]:
    """The expression that a part ends with; empty if there is none, or what stands before makes it doubtful."""
    start, depth = len(part), 0
    while start:
        token = part[start - 1]
        if start < len(part) and not _joined(token, part[start]):
            if token.symbol == ")" and not any(other.symbol == "(" for other in part[:start]):
                break  # 1) 5 + 3 = 8
            return []
        depth += (token.symbol == ")") - (token.symbol == "(")
        if depth < 0:
            if start > 1 and part[start - 2].symbol not in _VALUES:
                return []  # 100 + (100 * 2 = 300
            break  # (5 + 3 = 8)
        start -= 1
    found = part[start:] if depth <= 0 else []
    return found if start or chained or not found else _after_text(found, text, indent)


def _after_text(found: list[Token], text: str, indent: int) -> list[Token]:
    """Without a list's bullet; empty where an operator or half a number comes first."""
    first = found[0]
    spaced = len(found) > 1 and found[1].start > first.end
    if first.symbol in ("+", "-", "*") and first.start == indent and spaced:
        return found[1:]
    before = text[max(0, first.start - 8) : first.start]
    if first.symbol in ("+", "-"):
        return [] if spaced or before[-1:].isalnum() else found
    return [] if first.symbol not in ("0", "(") or _DOUBT_BEFORE.search(before) else found


def _expression_after(part: list[Token]) -> list[Token]:
    """The longest expression that a part begins with; empty if there is none."""
    end = depth = 0
    for index, token in enumerate(part):
        if index and not _joined(part[index - 1], token):
            return []
        depth += (token.symbol == "(") - (token.symbol == ")")
        if depth < 0:
            break
        if depth == 0 and token.symbol in _VALUES:
            end = index + 1
    return part[:end]


def _is_doubtful(left: list[Token], right: list[Token], text: str) -> bool:
    """Whether a wrong claim may mean something else: 50 - 20% = 40, 2 + 3 = 4x, 6 / 1/2 = 12."""
    symbols = [token.symbol for token in left]
    share_of = symbols.count("%") not in (0, symbols.count("0")) and bool({"+", "-"} & set(symbols))
    fraction = any(symbols[at : at + 3] == ["/", "0", "/"] for at in range(len(symbols)))
    mixed = symbols == ["0", "/", "0"] and text.endswith(" and ", 0, left[0].start)  # 3 and 1/4
    return share_of or fraction or mixed or bool(_DOUBT_AFTER.match(text, right[-1].end))


def _claim(
    kind: Literal["annotation", "text"], text: str, left: list[Token], right: list[Token], sign: str
) -> Claim | None:
    """None if either side is no expression."""
    try:
        value, whole, lead = value_of(left), value_of(right), value_of(_lead(right))
    except CalculatorError:
        return None
    expression, stated = (text[side[0].start : side[-1].end] for side in (left, right))
    result = whole if whole == value else lead  # 2/4 = 1/2, but 3 + 4 = 7 - 2 = 5
    places = len(next(token.text for token in right if token.symbol == "0").partition(".")[2])
    is_right = _is_right(value, result, places, sign == "~", "%" in expression + stated)
    return Claim(kind, left[0].start, expression, stated, value, result, is_right)


def _lead(right: list[Token]) -> list[Token]:
    """The first number of a result, with its sign and %; all of it where a bracket comes first."""
    first = next((index for index, token in enumerate(right) if token.symbol not in ("+", "-")), 0)
    end = first + 1 + any(token.symbol == "%" for token in right[first + 1 : first + 2])
    return right[:end] if right[first].symbol == "0" else right


def _is_right(value: Fraction, result: Fraction, places: int, roughly: bool, percent: bool) -> bool:
    """Whether `result` is `value`, or `value` rounded up or down to as many decimals.

    A whole number must be equal, but for a value without an end such as 100/3, and behind `≈`, where 1 % is allowed.
    Where a percent sign stands, the hundredfold is the same: 6/25 = 24%, 6/25*100 = 24%.
    """
    for factor in (Fraction(1), Fraction(100), Fraction(1, 100)) if percent else (Fraction(1),):
        exact = value * factor
        room = Fraction(1, 10**places) if places or roughly or not _ends(exact) else Fraction(0)
        room = max(room, abs(exact) / 100) if roughly else room
        if exact == result or abs(exact - result) < room:
            return True
    return False


def _ends(value: Fraction) -> bool:
    """Whether the value has finitely many decimals: no prime but 2 and 5 below the line."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
