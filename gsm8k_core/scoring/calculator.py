"""Arithmetic as it stands in GSM8K's steps: a bounded evaluator, without eval and ast, and the calculator made of it.

    sum      product, then + or - product, any number of times
    product  factor, then * / // x × · ÷ factor; a bracket right after a number or a bracket multiplies: 2(3+4)
    factor   any signs, a number or (sum), at most one %: 20% is 1/5

Signs of money and the marks of LaTeX and Markdown are skipped, `1,234` is a thousand, \\times \\cdot \\div \\$ \\% and
\\frac{1}{2} are read; `//` rounds down (it is in GSM8K). Numbers are exact fractions. Length, depth and digits are
bounded, so that time and memory are; there is no power. claims.py reads whole texts with the same tokens.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import NamedTuple

from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.problems.gold import MAX_DIGITS
from gsm8k_core.problems.prompts import decode, encode
from gsm8k_core.types import DataError

MAX_LENGTH = 200  # characters of one expression; GSM8K's longest has 36
MAX_DEPTH = 20  # nested brackets


class CalculatorError(ValueError):
    """The text is no expression that this calculator reads. Its only exception."""


class Token(NamedTuple):
    """One piece of a text. `symbol` says what it is.

    0 a number, + - * / // x ( ) % operators, = ~ equals signs; w a word; `,` a mark that ends a phrase, such as a full
    stop; ? whatever else, such as a power, which may change what stands beside it.
    """

    symbol: str
    text: str
    start: int
    end: int


# A hyphen between a number and a word is none of the operators: a 3-day trip. `**` marks bold text, but for 2**3.
_TOKEN = re.compile(
    r"(?P<clock>[0-9]+:[0-9][0-9:]*)"
    r"|(?P<number>[0-9]+(?:(?:,|\{,\})[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<blank>(?:[ \t\u00a0\u202f&`$€£¥₹]|\\[$€£,;:! ()\[\]]"
    r"|\\(?:left|right|q?quad|text(?:bf|it|rm)?|math(?:rm|bf)|boxed)(?![A-Za-z])"
    r"|(?<![0-9)])\*\*|\*\*(?![0-9(])|(?<=[0-9])-(?=[a-z]{2}))+)"
    r"|(?P<frac>\\[dt]?frac[ ]*(?=\{))|(?P<brace>[{}])"
    r"|(?P<end>=>|->|\\\\|\\(?:implies|[Rr]ightarrow|to)(?![A-Za-z])|(?<![0-9)])!(?!=)|[.,;:?\"“”•→⇒|—\n])"
    r"|(?P<sign>//|\\(?:times|cdot|div|ast|approx)(?![A-Za-z])|\\?%|(?<![A-Za-z])[xX](?![A-Za-z])"
    r"|(?<![=<>!])=(?![=<>])|[-+*/()×·÷−–≈])"
    r"|(?P<word>[A-Za-zÀ-ÖØ-öø-ɏ]+(?:['’-][A-Za-zÀ-ÖØ-öø-ɏ]+)*'?)"
    r"|(?P<other>\\[A-Za-z]+|.)",
    re.DOTALL,
)
_SIGNS = {
    "×": "*",
    "·": "*",
    "\\times": "*",
    "\\cdot": "*",
    "\\ast": "*",
    "÷": "/",
    "\\div": "/",
    "−": "-",
    "–": "-",
    "\\%": "%",
    "X": "x",
    "≈": "~",
    "\\approx": "~",
}
VALUES = ("0", ")", "%")  # what a value ends with
_GROUPED = re.compile(r"[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?:\.[0-9]+)?")


def calculate(expression: str) -> Fraction:
    """The exact value of an arithmetic expression; CalculatorError for whatever is none."""
    return value_of(list(islice(tokens(expression), MAX_LENGTH + 1)))  # one too many is too long


def tokens(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Token]:
    """The pieces of a part of `text` without blanks and marks of money. Linear; unreadable numbers are `?`."""
    braces: list[str] = []  # the open ones
    before = ""  # the symbol of the token before
    begins = ""  # what the next brace begins
    for found in _TOKEN.finditer(text, start, end):
        kind, piece = found.lastgroup, found[0]
        if kind == "blank":
            continue
        at = found.span()
        if kind in ("brace", "frac"):
            made, begins = _braced(piece, begins, braces)
            yield from (Token(symbol, piece, *at) for symbol in made)
            before = made[-1] if made else before
            continue
        before = _symbol(kind, piece, before)
        begins = ""
        yield Token(before, piece.replace("{,}", ","), *at)


def _symbol(kind: str | None, piece: str, before: str) -> str:
    if kind == "number":
        return "0" if _is_number(piece) else "?"
    if kind == "sign":
        return _SIGNS.get(piece, piece)
    if kind == "word":
        return "%" if before == "0" and piece == "percent" else "w"
    return "," if kind == "end" else "?"


def _braced(piece: str, begins: str, braces: list[str]) -> tuple[str, str]:
    """The symbols that a brace or a \\frac stands for, and what the brace after it begins."""
    if piece not in ("{", "}"):
        return "(", "numerator"
    if piece == "{":
        braces.append(begins)
        return ("(" if begins else ""), ""
    ended = braces.pop() if braces else ""
    if ended == "numerator":
        return ")/", "denominator"
    return ("))" if ended == "denominator" else ""), ""  # \\frac{a}{b} is ((a)/(b))


def touches(value: Token, bracket: Token) -> bool:
    """Whether they are a product: 2(3+4), and not 2 (3+4), which is a remark, nor 2\\frac{1}{2}, two and a half."""
    return value.end == bracket.start and bracket.text == "("


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
            if sign == "(" and not touches(self._tokens[self._at - 1], self._tokens[self._at]):
                break
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

NO_NUMBER = "?"  # behind a number that is wrong already: no claim is read there
NEAR = 16  # tokens that are decoded first: most annotations are open for fewer
FAR = MAX_LENGTH + NEAR  # and at most: none is shorter than a character, but for halves of one
# An annotation that is open, up to its one equals sign; what shares a token with that sign stands behind it.
_OPEN = re.compile(r"<<([^<>=\n]*)=([^<>=\n]*)\Z")
# The same without its beginning, which may have been cut within a word of LaTeX's.
_CUT = re.compile(r"[a-z]{0,5}(?:[^A-Za-z<>=\n]|[xX]|\\(?:times|cdot|div|frac))*=[^A-Za-z<>=\n]*")


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

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Calculator:
        """That of a model's tokenizer. Raises DataError."""
        return cls(partial(encode, tokenizer), partial(decode, tokenizer))

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
        # Begun as another number, it would stay wrong whatever came: closed at once, `<<1+3=->>` claims nothing.
        return self._encoded(found[0], f"{rest}>>", tail, text)

    def _encoded(self, opened: str, rest: str, tail: list[int], text: str) -> Sequence[int]:
        """`rest` as it is encoded behind `opened`, or by itself where the two would share a token."""
        head, whole, alone = self._encode([opened, opened + rest, rest])
        ways = [whole[len(head) :], alone] if list(whole[: len(head)]) == list(head) else [alone]
        for way in ways:
            if self._decode([*tail, *way]) == text + rest:
                return way
        raise DataError(
            f"this tokenizer cannot write {rest!r} behind {opened!r}; leave --calculator out (of train: off)"
        )


def _rest(result: str, begun: str) -> str:
    """What is left of a result that the token with the equals sign has begun: `=-`, `=$`, `=(`.

    Nothing where it began as another one; behind digits, which are a number already, a word that makes it none.
    """
    own = begun.lstrip(" $(")
    if not result.startswith(own):
        return NO_NUMBER if any(character.isdecimal() for character in own) else ""
    return result[len(own) :] + ")" * begun.count("(")
