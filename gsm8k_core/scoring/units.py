"""Words behind numbers: those that change the number, and units of one kind, between which a sum needs a factor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Before a number, or between it and the sign: half of 5 + 3, twice 5, 3 more than 2 * 4.
_CHANGES = """
    half halves twice double doubled triple tripled thrice quadruple third thirds fourth fourths quarter quarters fifth
    fifths sixth sixths eighth eighths tenth tenths hundredth hundredths percentage points average mean median
    full whole complete more less fewer than plus minus times divided multiplied remainder modulo mod
    square squared cube cubed root power negative factorial
    pair pairs couple couples score gross dozen dozens hundred hundreds thousand thousands million millions billion
"""
_CHANGE = frozenset(_CHANGES.split())
_BY = {"per", "each", "every", "a", "an", "for", "in", "of"}  # behind it stands what a unit is counted by
_UNITS = {
    "time": "second|sec minute|min hour|hr day week|wk month|mo year|yr decade century|centuries",
    "length": "inch|inches|in foot|feet|ft yard|yd mile|mi mm|millimeter cm|centimeter meter|metre km|kilometer",
    "amount": "ounce|oz pound|lb ton mg|milligram gram kg|kilogram|kilo teaspoon|tsp tablespoon|tbsp cup pint|pt "
    "quart|qt gallon|gal ml|milliliter liter|litre",
    "money": "dollar|buck cent|¢ penny|pennies nickel dime",
}
_KIND = {
    form: (kind, unit)
    for kind, units in _UNITS.items()
    for unit in units.split()
    for word in unit.split("|")
    for form in (word, word + "s")
}
_CENT = _KIND["cent"]
_DOLLAR = _KIND["dollar"]


def changes_a_number(words: Iterable[str]) -> bool:
    """Whether one of these words may change the number beside it; a lone letter may be an unknown."""
    seen = [word.lower() for word in words]
    letters = any(len(word) == 1 and word != "a" for word in seen)
    return letters or any(part in _CHANGE for word in seen for part in word.split("-"))


def unit_changes_a_number(words: Sequence[str]) -> bool:
    """The same behind a number. Behind `per` stands something else; `of` makes a share of it: 1/3 of Tom's."""
    return words[:1] == ["of"] or changes_a_number(_own(words))


def differ(left: Iterable[Sequence[str]], right: Iterable[Sequence[str]], dollars: tuple[bool, bool]) -> bool:
    """Whether two units of one kind stand in a claim, or cents on its right alone; `dollars`: a $ on either side."""
    sides = [{_KIND[word] for words in side for word in _own(words) if word in _KIND} for side in (left, right)]
    for side, has_dollar in zip(sides, dollars, strict=True):
        side |= {_DOLLAR} if has_dollar else set()
    together = sides[0] | sides[1]
    return len({kind for kind, _ in together}) < len(together) or (_CENT in sides[1] and _CENT not in sides[0])


def _own(words: Sequence[str]) -> list[str]:
    """The unit itself, without what it is counted by: 1/2 a cup, dollars per hour."""
    own: list[str] = []
    for word in words:
        if word.lower() not in _BY:
            own.append(word.lower())
        elif own:
            break
    return own
