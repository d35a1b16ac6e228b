r"""What a text claims: `expression = number`, in GSM8K's `<<48/2=24>>` or as models write it, and whether it is right.

Read are LaTeX (`\(16 \times \$3 = \$48\)`, `\frac{1}{2} \times 10 = 5`), units and words behind numbers (`16 eggs - 3
eggs = 13 eggs`, `$5/hour * 3 hours = $15`), `20% of 50 = 10`, `3 times 4 = 12`, chains (`a + b = c - d = e` claims each
equality; a result is the first number behind the sign, or all up to the next sign, whichever is right), `= 25%`, mixed
numbers such as 3 1/2, and a line that goes on the one before it with `=`.

Right is what is equal, or rounded up or down to the digits that are written: 10/3 = 3.33, 2/3 = 0.67 or 0.66. A whole
number must be equal, but for a value without an end (100/3 = 33), and behind `≈`, where 1 % is allowed.

The reader would rather miss a wrong claim than call a right one wrong: a false sum is a claim only where nothing around
it may mean something else. Such are: an unknown (`2x + 5`), two units of one kind (`90 minutes - 1 hour`), words that
change a number (half, twice, dozen, more than), a remainder, rounding that is spoken of or that an operand shows, a
share of what stands before it (`50 - 20% = 40`), a dash that may be a minus. A true sum is taken as a claim there, too.
Not read: powers, roots, times of day, numbers as words, a result on the next line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise
from typing import Literal

from gsm8k_core.scoring.calculator import VALUES, CalculatorError, Token, tokens, touches, value_of
from gsm8k_core.scoring.units import changes_a_number, differ, unit_changes_a_number

MAX_CLAIMS = 1_000  # in one text
MAX_WORDS = 8  # between a number and the sign behind it: a unit, no sentence


@dataclass(frozen=True, slots=True)
class Claim:
    """One `expression = number`. Right: equal, or rounded as a person would; see _is_right."""

    kind: Literal["annotation", "text"]
    start: int  # in characters, of the expression
    end: int  # of what is stated
    expression: str  # as it is written, without annotations
    stated: str
    plain: str  # the expression without blanks, units and marks; the calculator reads it
    is_step: bool  # an operator is in it: <<18=18>> says nothing, though 18 = 19 is wrong
    value: Fraction  # what the expression is
    result: Fraction  # what the text says it is
    right: bool


@dataclass(slots=True)
class _Run:
    """Numbers and signs that stand together, units left out."""

    opened: str = ""  # what ended the run before: `,`, `?` or w; nothing at the start of a line and behind a result
    lead: list[str] = field(default_factory=list)  # the words between that and its first token
    loose: bool = False  # words stand where a number should, or a sign without one came before: 5 + the 3 pears
    tokens: list[Token] = field(default_factory=list)
    units: dict[int, list[str]] = field(default_factory=dict)  # start of a token -> the words behind it


_ANNOTATION = re.compile(r"<<([^<>=\n]*)=([^<>\n]*)>>")
_GOES_ON = re.compile(r"\n(?=[ \t&]*(?:=(?!=)|≈|\\approx))")
_LINE = re.compile(r"[^\n]+")
_EQUALS = re.compile(r"[=≈]|\\approx")
# After a result: an unknown, a power, the rest of a number.
_DOUBT_AFTER = re.compile(
    r"[ \t]*(?:[xX](?![A-Za-z])|[-+*/–−][ \t]*[A-Za-z](?![A-Za-z])|[\^_²³]|\\(?:sqrt|[dt]?frac|pi))|:[0-9]"
)
_ROUNDING = re.compile(
    r"round|approx|about|nearly|almost|roughly|estimat|≈|remain|left ?over|\bR ?[0-9]", re.IGNORECASE
)
_ROUNDED = re.compile(r"\.[0-9]*(?:33|66|67|11|22|44|55|77|88|99|14|28|29|43|57|71|86)\Z")
NEAR = 60  # characters around a claim in which rounding may be spoken of
_UNKNOWN = re.compile(r"[0-9)][A-Za-z](?![A-Za-z0-9])|\b0[0-9]|\*[ \t]*\+")  # 2x + 5, 0900 - 0130, and * + 1
_THOUSANDS = re.compile(r"[0-9],[ \t]?\Z")  # 14, 400
_OPERATORS = ("+", "-", "*", "/", "//", "x")
_WORD_SIGNS = {("times",): "*", ("multiplied", "by"): "*", ("plus",): "+", ("minus",): "-", ("divided", "by"): "/"}
_OF_WHAT = {"the", "his", "her", "their", "its", "those", "these", "that", "all", "my", "your", "our"}
# With these a number goes on into the next: 5 apples and 3 pears + 2.
_JOINING = {"and", "or", "to", "with", "on", "of", "at", "for", "by", "from", "in", "per"}
_LABELS = {"step", "part", "day", "case", "question", "problem", "option"}
# No unit has these; a sentence does.
_SENTENCE = {"because", "so", "since", "then", "as", "if", "which", "means", "is", "are", "was", "were", "gives", "has"}


def find_claims(text: str) -> list[Claim]:
    """The claims that can be read, at most MAX_CLAIMS, in the order of the text. Linear; raises on no string."""
    found: list[Claim] = []
    for match in islice(_ANNOTATION.finditer(text), MAX_CLAIMS):
        left, right = list(tokens(text, *match.span(1))), list(tokens(text, *match.span(2)))
        claim = _claim("annotation", text, left, right, "=") if left and right else None
        found.extend([claim] if claim else [])
    text = _GOES_ON.sub(" ", _ANNOTATION.sub(_blank, text))
    in_text = islice(_in_text(text), MAX_CLAIMS)
    return sorted([*found, *in_text], key=lambda claim: claim.start)[:MAX_CLAIMS]


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _in_text(text: str) -> Iterator[Claim]:
    rounded: set[str] = set()  # results that are not exact: what is made of them is not, either
    for line in _LINE.finditer(text):
        if not _EQUALS.search(text, *line.span()):
            continue
        indent = len(line[0]) - len(line[0].lstrip())
        for run in _runs(list(tokens(text, *line.span()))):
            for claim in _in_run(run, text, line.start() + indent, rounded):
                if claim.right and claim.value != claim.result:
                    rounded.add(claim.stated)
                yield claim


def _in_run(run: _Run, text: str, indent: int, rounded: set[str]) -> Iterator[Claim]:
    """`a = b = c` claims a = b and b = c."""
    parts, equals = _split(run.tokens)
    for number, sign in enumerate(equals):
        before, at_start = _expression_before(parts[number])
        doubtful = run.loose
        if at_start and not number:
            before, unsure = _after_lead(before, run, text, indent)
            doubtful |= unsure
        right = _expression_after(parts[number + 1])
        if not right or not _has_operator(before):  # -5 = -5 claims nothing
            continue
        claim = _claim("text", text, before, right, sign)
        left_over = parts[number + 1][len(right) : len(right) + 1]
        doubtful |= bool(left_over) and left_over[0].symbol in _OPERATORS  # = 8 bags / Y
        if claim and (claim.right or not (doubtful or _is_doubtful(claim, before, right, run, text, rounded))):
            yield claim


# --- from a line to runs --------------------------------------------------------------------------------------


def _runs(line: Sequence[Token]) -> Iterator[_Run]:
    """The runs of a line. Words behind a number are its unit where a sign follows, else they end the run."""
    run, words, at = _Run(), list[Token](), 0
    while at < len(line):
        token = line[at]
        if size := _words_at(line, at):
            words += [one for one in line[at : at + size] if one.symbol == "w"]
            at += size
            continue
        if words:
            following = _with_words(run, words, token)
            if following is not run:
                yield run
                run = following
            words = []
        if token.symbol in (",", "?"):
            yield run
            run = _Run(token.symbol, loose=_dangles(run))
        elif size := _mixed_at(line, at):
            run.tokens += _mixed(line[at : at + size])
            at += size
            continue
        else:
            run.tokens.append(token)
        at += 1
    if words and run.tokens:
        run.units[run.tokens[-1].start] = [one.text for one in words]
    yield run


def _with_words(run: _Run, words: Sequence[Token], following: Token) -> _Run:
    """The run that goes on behind these words: the same one, or the next where they end it."""
    plain = [one.text for one in words]
    value_follows = following.symbol in ("0", "(")
    if value_follows and words[-1].end == following.start and following.text == "(":
        return _Run("?")  # sqrt(9 + 16)
    if not run.tokens:
        run.lead += plain
        return run
    last = run.tokens[-1]
    if last.symbol not in VALUES:
        if value_follows and last.symbol != "(":
            run.loose = True
            return run
        return _Run("w", plain, loose=True)
    sign, count = _sign_of(plain, run) if value_follows else ("", 0)
    run.units[last.start] = plain[: len(plain) - count]
    if sign:
        run.tokens.append(Token(sign, sign, words[0].start, words[-1].end))
    elif value_follows or len(words) > MAX_WORDS or _SENTENCE & {word.lower() for word in plain}:
        told = any(token.symbol in ("=", "~") for token in run.tokens)
        return _Run("" if told else "w", plain)
    return run


def _dangles(run: _Run) -> bool:
    return bool(run.tokens) and run.tokens[-1].symbol in _OPERATORS


def _words_at(line: Sequence[Token], at: int) -> int:
    """How many tokens from here on are words: one, `/hour`, or a remark of words alone in brackets."""
    if line[at].symbol == "w":
        return 1
    if line[at].symbol in ("/", "-") and line[at + 1 : at + 2] and line[at + 1].symbol == "w":
        return 2 if line[at].symbol == "/" and len(line[at + 1].text) > 1 else 0
    if line[at].symbol == "(" and (not at or line[at - 1].end < line[at].start):
        end = next((end for end in range(at + 1, min(at + MAX_WORDS, len(line))) if line[end].symbol != "w"), at)
        return end + 1 - at if end > at + 1 and line[end].symbol == ")" else 0
    return 0


def _sign_of(words: Sequence[str], run: _Run) -> tuple[str, int]:
    """The sign that words between two values end with, and how many of them it takes.

    `of` is one behind a share: 20% of 50, 1/2 of the 10.
    """
    plain = [word.lower() for word in words]
    if plain[0] == "of" and len(plain) <= 2 and set(plain[1:]) <= _OF_WHAT:
        symbols = [token.symbol for token in run.tokens[-3:]]
        return ("*", len(plain)) if symbols[-1] in ("%", ")") or symbols == ["0", "/", "0"] else ("", 0)
    return next(
        ((_WORD_SIGNS[end], len(end)) for end in (tuple(plain[-1:]), tuple(plain[-2:])) if end in _WORD_SIGNS), ("", 0)
    )


def _mixed_at(line: Sequence[Token], at: int) -> int:
    """Whether 3 1/2 stands here: a whole number, a blank, and a fraction below one without blanks; 0 or 4 tokens."""
    part = line[at : at + 4]
    if [token.symbol for token in part] != ["0", "0", "/", "0"] or (at and line[at - 1].symbol == "/"):
        return 0
    whole, above, stroke, below = part
    touching = above.end == stroke.start and stroke.end == below.start
    plain = all(token.text.isdecimal() for token in (whole, above, below))
    return 4 if touching and plain and whole.end < above.start and int(above.text) < int(below.text) else 0


def _mixed(part: Sequence[Token]) -> list[Token]:
    """(3+1/2)."""
    whole, above, stroke, below = part
    return [
        Token("(", "(", whole.start, whole.start),
        whole,
        Token("+", "+", whole.end, above.start),
        above,
        stroke,
        below,
        Token(")", ")", below.end, below.end),
    ]


# --- from a run to expressions --------------------------------------------------------------------------------


def _split(run: Sequence[Token]) -> tuple[list[list[Token]], list[str]]:
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
    """Whether two neighbours can be in one expression: not two values beside one another, such as 3 4."""
    beside = left.symbol in VALUES and right.symbol in ("0", "(")
    return not beside or (right.symbol == "(" and left.symbol != "%" and touches(left, right))


def _expression_before(part: list[Token]) -> tuple[list[Token], bool]:
    """The expression that a part ends with, and whether the part begins with it; empty if there is none."""
    start, depth = len(part), 0
    while start:
        token = part[start - 1]
        if start < len(part) and not _joined(token, part[start]):
            if token.symbol == ")" and not any(other.symbol == "(" for other in part[:start]):
                break  # 1) 5 + 3 = 8
            return [], False
        depth += (token.symbol == ")") - (token.symbol == "(")
        if depth < 0:
            if start > 1 and part[start - 2].symbol not in VALUES:
                return [], False  # 100 + (100 * 2 = 300
            break  # (5 + 3 = 8)
        start -= 1
    return (part[start:], not start) if depth <= 0 else ([], False)


def _after_lead(found: list[Token], run: _Run, text: str, indent: int) -> tuple[list[Token], bool]:
    """Without a list's bullet or a dash, and whether what stands before makes a false claim doubtful.

    Empty where half a number, a power or an operator comes first.
    """
    if not found or (run.opened == "?" and not run.lead):
        return [], False
    if _LABELS & {word.lower() for word in run.lead[-1:]} and [token.symbol for token in found[:2]] == ["0", "-"]:
        found = found[2:] if len(found) > 2 and found[1].end < found[2].start else found  # Step 1 - 5 + 3 = 8
    first, before = found[0], text[max(0, found[0].start - 3) : found[0].start]
    spaced = len(found) > 1 and found[1].start > first.end
    bulleted = spaced and first.start == indent and first.symbol in ("+", "-", "*")
    dashed = spaced and not bulleted and first.symbol == "-"
    if not (bulleted or dashed) and (
        first.symbol not in ("0", "(", "+", "-") or (first.symbol in ("+", "-") and (spaced or before[-1:].isalnum()))
    ):
        return [], False
    joined = run.opened == "w" and bool(_JOINING & set(run.lead[-3:]))
    torn = run.opened == "," and not run.lead and bool(_THOUSANDS.search(before))
    return found[bulleted or dashed :], dashed or joined or torn or changes_a_number(run.lead[-4:])


def _expression_after(part: list[Token]) -> list[Token]:
    """The longest expression that a part begins with; empty if there is none."""
    end = depth = 0
    for index, token in enumerate(part):
        if index and not _joined(part[index - 1], token):
            if token.symbol == "0":
                return []
            break
        depth += (token.symbol == "(") - (token.symbol == ")")
        if depth < 0:
            break
        if depth == 0 and token.symbol in VALUES:
            end = index + 1
    return part[:end]


# --- claims ---------------------------------------------------------------------------------------------------


def _claim(
    kind: Literal["annotation", "text"], text: str, left: list[Token], right: list[Token], sign: str
) -> Claim | None:
    """None if either side is no expression."""
    try:
        value, whole, lead = value_of(left), value_of(right), value_of(_lead(right))
    except CalculatorError:
        return None
    start, end = left[0].start, right[-1].end
    expression, stated = text[start : left[-1].end], text[right[0].start : end]
    result = whole if whole == value else lead  # 2/4 = 1/2, but 3 + 4 = 7 - 2 = 5
    places = len(next(token.text for token in right if token.symbol == "0").partition(".")[2])
    is_right = _is_right(value, result, places, sign == "~", _is_of_hundred(left, right))
    return Claim(kind, start, end, expression, stated, _plain(left), _has_operator(left), value, result, is_right)


def _is_of_hundred(left: Sequence[Token], right: Sequence[Token]) -> bool:
    """Whether a result may be a share told in hundredths: 6/25 = 24%, 100% - 20% = 80, 6/25 * 100% = 24.

    80 * 25% = 2000 is none.
    """
    marks, numbers = (sum(token.symbol == symbol for token in left) for symbol in ("%", "0"))
    whole = any((one.text, two.symbol) == ("100", "%") for one, two in pairwise(left))
    return any(token.symbol == "%" for token in right) or marks == numbers or whole


def _plain(found: Sequence[Token]) -> str:
    """The tokens without blanks, commas and words: 16-3, 20%*50; × and x are *."""
    return "".join({"0": token.text.replace(",", ""), "x": "*"}.get(token.symbol, token.symbol) for token in found)


def _has_operator(found: Sequence[Token]) -> bool:
    """Whether something is computed: a sign before a number is none."""
    return any(one.symbol in VALUES and two.symbol not in (*VALUES, "(") for one, two in pairwise(found))


def _lead(right: list[Token]) -> list[Token]:
    """The first number of a result, with its sign and %; all of it where a bracket comes first."""
    first = next((index for index, token in enumerate(right) if token.symbol not in ("+", "-")), 0)
    end = first + 1 + any(token.symbol == "%" for token in right[first + 1 : first + 2])
    return right[:end] if right[first].symbol == "0" else right


def _is_right(value: Fraction, result: Fraction, places: int, roughly: bool, of_hundred: bool) -> bool:
    """Whether `result` is `value`, or `value` rounded up or down to as many decimals.

    A whole number must be equal, but for a value without an end such as 100/3, and behind `≈`, where 1 % is allowed.
    With `of_hundred` the hundredfold is the same: 6/25 = 24%, 6/25*100 = 24%.
    """
    for factor in (Fraction(1), Fraction(100), Fraction(1, 100)) if of_hundred else (Fraction(1),):
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


# --- doubt ----------------------------------------------------------------------------------------------------


def _is_doubtful(
    claim: Claim, left: Sequence[Token], right: Sequence[Token], run: _Run, text: str, rounded: set[str]
) -> bool:
    """Whether a claim that is false may mean something else."""
    behind = [[run.units.get(token.start, []) for token in side] for side in (left, right)]
    symbols = [token.symbol for token in left]
    share_of = symbols.count("%") not in (0, symbols.count("0")) and bool({"+", "-"} & set(symbols))  # 50 - 20% = 40
    fraction = any(symbols[at : at + 3] == ["/", "0", "/"] for at in range(len(symbols)))  # 6 / 1/2 = 12
    mixed = symbols == ["0", "/", "0"] and "and" in run.lead[-1:]  # 3 and 1/4
    mixed |= any(token.symbol == "(" and token.start == token.end for token in (*left, *right))
    dollars = "$" in text[max(0, claim.start - 2) : left[-1].end], "$" in text[left[-1].end : claim.end]
    return (
        share_of
        or fraction
        or mixed
        or bool(_UNKNOWN.search(text, claim.start, claim.end + 2) or _DOUBT_AFTER.match(text, claim.end))
        or any(unit_changes_a_number(words) for side in behind for words in side)
        or differ(behind[0], behind[1], dollars)
        or bool(_ROUNDING.search(_near(claim, text)))
        or claim.result in (claim.value * 1_000, claim.value * 1_000_000)  # said in thousands
        or _is_range(claim, left, run)
        or _is_right_after_dash(claim, left)
        or _is_of_rounded(claim, left, rounded)
    )


def _near(claim: Claim, text: str) -> str:
    before = text[max(0, claim.start - NEAR) : claim.start].rpartition("\n")[2]
    return before + " " + text[claim.end : claim.end + NEAR].partition("\n")[0]


def _is_of_rounded(claim: Claim, left: Sequence[Token], rounded: set[str]) -> bool:
    """Whether the result is within 1 % and made of a rounded number: 3.33 * 3 = 10."""
    numbers = [token.text for token in left if token.symbol == "0"]
    made = any(number in rounded or _ROUNDED.search(number) for number in numbers)
    return made and abs(claim.value - claim.result) * 100 <= abs(claim.value)


def _is_range(claim: Claim, left: Sequence[Token], run: _Run) -> bool:
    """Whether a difference without blanks may be a range: Weeks 1-2 = 96, from 9-5 = 8 hours."""
    if [token.symbol for token in left] != ["0", "-", "0"] or left[1].end != left[2].start:
        return False
    return claim.value < 0 < claim.result or bool({"from", "between"} & {word.lower() for word in run.lead[-2:]})


def _is_right_after_dash(claim: Claim, left: Sequence[Token]) -> bool:
    """Whether the last spaced dash may be none of the signs: Total for 2 - 5 + 3 = 8."""
    for at in range(len(left) - 2, 0, -1):
        if left[at].symbol == "-" and left[at - 1].end < left[at].start:
            try:
                return value_of(left[at + 1 :]) == claim.result
            except CalculatorError:
                return False
    return False
