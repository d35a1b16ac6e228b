"""What one change would mend a wrong answer: its chain of sums beside the gold's.

A step is one sum of a text, `16 - 3 = 13`; a number in it that an earlier step came to is taken from there, so a chain
can be run again with something changed, each sum done right. The answer's step is the last whose result was answered.
Each class is one change that leads to the gold, and what it puts in is a step of the gold's:

    arithmetic slip    a sum on the way is wrong, and with each result corrected the chain comes to the gold
    wrong operation    a step has the numbers of one of the gold's and another sign: 52 + 20 for 52 - 20
    a step too many    the gold was there and went on into another sum; or a result that no gold step has stands
                       where the gold has one of its numbers: 21 * 2 = 42, 60 + 42 for 60 + 21
    wrong number       a step has the sign of one of the gold's and all its numbers but one: 45 + 9 for 45 + 46
    a step missing     that one number is the result of a gold step which the answer has not; or each step on the way
                       is the gold's, and the answer stops before its end; or there is no sum, and the answer is a
                       number of the question

More than one change is none of them, and a wrong sum is one; only the sum of a wrong sign goes with it. So is a right
plan that the gold does not have.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gsm8k_core.scoring.calculator import CalculatorError, calculate
from gsm8k_core.scoring.claims import Claim, find_claims

MAX_STEPS = 40  # of a chain; what has more is a loop
_BY_RANK = ("wrong_operation", "step_extra", "wrong_number", "step_missing")
_ASKED = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")


@dataclass(frozen=True, slots=True)
class Sum:
    """One sum."""

    shape: str  # the expression with # for its numbers
    numbers: tuple[Fraction, ...]
    stated: Fraction
    value: Fraction  # what the expression is
    right: bool  # they are equal, or rounded as a person would
    start: int  # in characters of its text
    end: int

    def alike(self, other: Sum) -> bool:
        """The same numbers under the same signs, in any order under one that has none."""
        return self.sign == other.sign and (
            self.numbers == other.numbers or (self.sign in _ORDERLESS and _same(self.numbers, other.numbers))
        )

    @property
    def sign(self) -> str:
        """`+` of 1 + 2 + 3, the whole shape of anything that mixes signs."""
        signs = self.shape.split("#")
        plain = signs[0] == signs[-1] == "" and len(set(signs[1:-1])) == 1
        return signs[1] if plain else self.shape


Changes = Mapping[int, Sum]  # which step is replaced by which
_ORDERLESS = ("+", "*")


@dataclass(frozen=True, slots=True)
class Reference:
    """What an answer is held against."""

    steps: Sequence[Sum]  # of the gold answer
    gold: Fraction
    asked: Collection[Fraction]  # the numbers of the question, and those of the steps: a fourth is a 4 there

    @classmethod
    def of(cls, question: str, answer: str, gold: Fraction) -> Reference:
        steps = steps_of(find_claims(answer.partition("####")[0]))
        asked = {Fraction(number.replace(",", "")) for number in _ASKED.findall(question)}
        return cls(steps, gold, asked.union(*(step.numbers for step in steps)))


def steps_of(claims: Sequence[Claim]) -> list[Sum]:
    """The sums of a text in their order; an annotation in a sum that says more is part of it."""
    told = [claim for claim in claims if claim.is_step and claim.kind == "text"]
    alone = (claim for claim in claims if claim.is_step and claim.kind == "annotation" and not _is_within(claim, told))
    return [_step(claim) for claim in sorted([*told, *alone], key=lambda claim: claim.start)[:MAX_STEPS]]


def is_slip(steps: Sequence[Sum], gold: Fraction, answered: Fraction) -> bool:
    """Whether a wrong sum is on the way to what was answered, and the chain comes to the gold without it."""
    at = _answer_at(steps, answered)
    if at is None or all(steps[each].right for each in _way(steps, at)):
        return False
    return _run(steps, at, {}) == gold


def fault(steps: Sequence[Sum], reference: Reference, answered: Fraction) -> str | None:
    """`wrong_operation`, `step_extra`, `wrong_number` or `step_missing`, or None."""
    return (find_fault(steps, reference, answered) or (None, None))[0]


def find_fault(steps: Sequence[Sum], reference: Reference, answered: Fraction) -> tuple[str, int | None] | None:
    """The kind of fault, and the place in `steps` of the step that it is in; no place where no step is wrong itself."""
    if not steps:
        return ("step_missing", None) if any(answered in step.numbers for step in reference.steps) else None
    at = _answer_at(steps, answered)
    if at is None or not reference.steps:
        return None
    way, gold = _way(steps, at), reference.gold
    if any(steps[each].alike(reference.steps[-1]) and steps[each].stated == gold for each in way if each != at):
        return "step_extra", at
    wrong = [each for each in way if not steps[each].right]
    if not wrong and {steps[each].value for each in way} <= {step.value for step in reference.steps} - {gold}:
        return "step_missing", None
    found: dict[str, int] = {}
    for each in way:
        for step in reference.steps:
            if (
                (kind := _change(steps, each, step, reference))
                and _run(steps, at, {each: step}) == gold
                # A wrong sum under a wrong sign goes with it.
                and (not wrong or (kind == "wrong_operation" and wrong == [each]))
            ):
                found.setdefault(kind, each)
    if "step_extra" in found:  # it is the one that the gold has not, before the step that takes its result
        found["step_extra"] = next(each for each in way if not _is_among(steps[each], reference.steps))
    return next(((kind, found[kind]) for kind in _BY_RANK if kind in found), None)


def _change(steps: Sequence[Sum], at: int, step: Sum, reference: Reference) -> str | None:
    """What it would be to have this step of the gold's in the place of one's own."""
    own = steps[at]
    if own.sign != step.sign:
        return "wrong_operation" if _same(own.numbers, step.numbers) else None
    if (pair := _one_other(own, step)) is None:
        return None
    old, new = pair
    strays = [each for each in steps[:at] if old in (each.stated, each.value) and not _is_among(each, reference.steps)]
    if any(new in each.numbers for each in strays):
        return "step_extra"
    left_out = any(each.value == new for each in reference.steps) and not any(each.value == new for each in steps)
    if left_out:
        return "step_missing" if old in reference.asked and not strays else None
    return "wrong_number"


def _is_among(step: Sum, others: Sequence[Sum]) -> bool:
    return any(step.alike(other) for other in others)


def _one_other(own: Sum, step: Sum) -> tuple[Fraction, Fraction] | None:
    """The one number that differs, and what stands for it in the other; in its place where the sign has an order."""
    if own.sign in _ORDERLESS:
        gone, come = Counter(own.numbers) - Counter(step.numbers), Counter(step.numbers) - Counter(own.numbers)
        pairs = list(zip(gone.elements(), come.elements(), strict=False))
    else:
        pairs = [pair for pair in zip(own.numbers, step.numbers, strict=False) if pair[0] != pair[1]]
    return pairs[0] if len(pairs) == 1 and len(own.numbers) == len(step.numbers) else None


# --- chains ---------------------------------------------------------------------------------------------------


def _is_within(claim: Claim, others: Sequence[Claim]) -> bool:
    """Whether an annotation stands in one of them, or right before what it states."""
    return any(other.start < claim.end and claim.start < other.end for other in others)


def _step(claim: Claim) -> Sum:
    numbers = tuple(Fraction(number) for number in _NUMBER.findall(claim.plain))
    return Sum(_NUMBER.sub("#", claim.plain), numbers, claim.result, claim.value, claim.right, claim.start, claim.end)


def _same(left: Sequence[Fraction], right: Sequence[Fraction]) -> bool:
    return Counter(left) == Counter(right)


def _answer_at(steps: Sequence[Sum], answered: Fraction) -> int | None:
    return next((at for at in range(len(steps) - 1, -1, -1) if steps[at].stated == answered), None)


def _source(steps: Sequence[Sum], at: int, number: Fraction) -> int | None:
    """The last step before that came to this number."""
    return next((each for each in range(at - 1, -1, -1) if number in (steps[each].stated, steps[each].value)), None)


def _way(steps: Sequence[Sum], at: int) -> list[int]:
    """The steps that the one at `at` is made of, and itself, in their order."""
    found, left = {at}, [at]
    while left:
        each = left.pop()
        sources = {_source(steps, each, number) for number in steps[each].numbers} - found
        for source in sources - {None}:
            if source is not None:
                found.add(source)
                left.append(source)
    return sorted(found)


def _run(steps: Sequence[Sum], at: int, changes: Changes) -> Fraction | None:
    """What the step at `at` comes to, each sum done right."""
    values: list[Fraction] = []
    for each, step in enumerate(steps[: at + 1]):
        if each in changes:
            values.append(changes[each].value)
            continue
        sources = [_source(steps, each, number) for number in step.numbers]
        numbers = [values[s] if s is not None else n for s, n in zip(sources, step.numbers, strict=True)]
        value = _value(step.shape, numbers)
        if value is None:
            return None
        values.append(value)
    return values[at]


def _value(shape: str, numbers: Sequence[Fraction]) -> Fraction | None:
    given = iter(numbers)
    try:
        return calculate(re.sub("#", lambda _: _written(next(given)), shape))
    except CalculatorError:
        return None


def _written(number: Fraction) -> str:
    return (
        f"({number.numerator}/{number.denominator})" if number >= 0 else f"(0-{-number.numerator}/{number.denominator})"
    )
