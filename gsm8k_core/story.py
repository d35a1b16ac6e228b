"""What a template is made of: people and things, a source of numbers, and steps that compute themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """One computed step. In a sentence it reads `48/2 = <<48/2=24>>24`."""

    expression: str
    value: int

    def __str__(self) -> str:
        return f"{self.expression} = <<{self.expression}={self.value}>>{self.value}"

    @property
    def dollars(self) -> str:
        """As `str(step)`, with the result in dollars: `3*4 = $<<3*4=12>>12`."""
        return f"{self.expression} = $<<{self.expression}={self.value}>>{self.value}"


Operand: TypeAlias = "int | Step"


def _value(operand: Operand) -> int:
    return operand.value if isinstance(operand, Step) else operand


def add(*operands: Operand) -> Step:
    values = [_value(operand) for operand in operands]
    return Step("+".join(str(value) for value in values), sum(values))


def subtract(start: Operand, taken: Operand) -> Step:
    before, less = _value(start), _value(taken)
    if less > before:
        raise ValueError(f"a template computes {before}-{less}, which is below zero")
    return Step(f"{before}-{less}", before - less)


def multiply(first: Operand, second: Operand) -> Step:
    left, right = _value(first), _value(second)
    return Step(f"{left}*{right}", left * right)


def divide(whole: Operand, parts: Operand) -> Step:
    total, count = _value(whole), _value(parts)
    if total % count:
        raise ValueError(f"a template computes {total}/{count}, which is not a whole number")
    return Step(f"{total}/{count}", total // count)


@dataclass(frozen=True, slots=True)
class Person:
    """A name with its pronouns. In a sentence it reads as the name."""

    name: str
    he: str
    his: str

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:
        return self.he.capitalize()

    @property
    def His(self) -> str:
        return self.his.capitalize()


@dataclass(frozen=True, slots=True)
class Story:
    """What a template writes: the question, one sentence for each step, and the last step's number."""

    question: str
    steps: tuple[str, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Everything random in a story. It only uses `rng.integers`: a seed means the same story everywhere."""

    rng: np.random.Generator

    def number(self, low: int, high: int, step: int = 1) -> int:
        """One of low, low + step, ... up to and including high."""
        return low + step * int(self.rng.integers((high - low) // step + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def two(self, options: Sequence[T]) -> tuple[T, T]:
        """Two different ones, in random order."""
        first = int(self.rng.integers(len(options)))
        second = int(self.rng.integers(len(options) - 1))
        return options[first], options[second + (second >= first)]

    def person(self) -> Person:
        return self.pick(PEOPLE)

    def people(self) -> tuple[Person, Person]:
        return self.two(PEOPLE)


Writer: TypeAlias = Callable[[Draw], Story]

_SHE = "Anna Maria Emma Sofia Lily Grace Nora Priya Mei Zoe Hannah Ruth Fatima Chloe Olga Julia Amina Kate"
_HE = "Tom Ben Omar Leo Jack David Raj Sam Noah Carlo Felix Ivan Peter Hugo Kenji Adam Paul Victor Daniel"
PEOPLE = (
    *(Person(name, "she", "her") for name in _SHE.split()),
    *(Person(name, "he", "his") for name in _HE.split()),
)

COLLECTIBLES = ("stickers", "marbles", "seashells", "buttons", "postcards", "stamps", "beads", "toy cars")
FRUITS = ("apples", "oranges", "pears", "plums", "peaches", "lemons", "apricots", "figs")
BAKED = ("cookies", "muffins", "cupcakes", "rolls", "biscuits", "brownies", "scones", "bagels")
FLOWERS = ("roses", "tulips", "daisies", "lilies", "sunflowers", "daffodils")
SUPPLIES = ("pens", "pencils", "notebooks", "erasers", "markers", "folders", "rulers", "crayons")
CRAFTS = ("bracelets", "candles", "scarves", "keychains", "birdhouses", "baskets", "mugs", "bookmarks")
CLOTHES = ("coat", "sweater", "jacket", "dress", "backpack", "raincoat", "blanket", "suitcase")
VENUES = ("museum", "zoo", "concert", "movie", "train", "circus", "ferry", "theater")
GROUPS = ("chess club", "school choir", "swimming class", "art class", "drama club", "science club")
WEEKDAYS = (
    ("Monday", "Tuesday"),
    ("Tuesday", "Wednesday"),
    ("Wednesday", "Thursday"),
    ("Thursday", "Friday"),
)

# (number to divide by, how the question says it)
FRACTIONS = ((2, "half"), (3, "a third"), (4, "a fourth"), (5, "a fifth"))
# (number to multiply by, how the question says it)
TIMES = ((2, "twice"), (3, "three times"), (4, "four times"))
# (percent, the same as a fraction, number to divide by)
PERCENTS = ((10, "a tenth", 10), (20, "a fifth", 5), (25, "a fourth", 4), (50, "half", 2))
