"""Three problems that show what the numbers mean: one won, one lost, and the trained model's typical failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gsm8k_core.scoring.diagnose import CATEGORIES, wrong_step
from gsm8k_core.types import counted

LONGEST = 600  # characters of an answer on a card

Record = Mapping[str, Any]
Pair = tuple[int, tuple[Record, ...]]  # the place of a problem, and each model's record of it


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a text; `wrong` is the first wrong step."""

    text: str
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """One example. `texts` stand in the order of the models."""

    title: str
    kind: str  # won, lost, neither, wrong: the class of the style sheet
    why: str
    place: int  # among the problems
    texts: tuple[dict[str, Any], ...]


def pieces(record: Record, longest: int) -> list[Passage]:
    """The answer's first `longest` characters, with its first wrong step apart."""
    text = record["completion"][:longest]
    start, end = wrong_step(record) or (0, 0)
    if not start < end <= len(text):
        return [Passage(text)]
    parts = (Passage(text[:start]), Passage(text[start:end], wrong=True), Passage(text[end:]))
    return [part for part in parts if part.text]


def choose(answers: Sequence[Sequence[Record]], rule: str) -> list[Card]:
    """The cards; of base and trained, or of one model. What there is no example of has no card."""
    problems: list[Pair] = list(enumerate(zip(*answers, strict=True)))

    def right(record: Record) -> bool:
        return bool(record["rules"][rule]["correct"])

    cards = []
    if len(answers) == 2:
        won = [each for each in problems if right(each[1][1]) and not right(each[1][0])]
        lost = [each for each in problems if right(each[1][0]) and not right(each[1][1])]
        cards += _card(won, "A win", "won", 0, lambda record: f"the base: {_words(record)}")
        cards += _card(lost, "A loss", "lost", 1, lambda record: f"the trained model: {_words(record)}")
    failed = [each for each in problems if not right(each[1][-1])]
    if failed:
        kinds = Counter(_category(records[-1]) for _, records in failed)
        kind, count = max(kinds.items(), key=lambda item: (item[1], item[0] != "other_wrong"))
        typical = [each for each in failed if _category(each[1][-1]) == kind]
        said = f"{_label(kind)}: {count:,} of the {counted(len(failed), 'wrong answer')}"
        cards += _card(typical, "The typical failure", "neither", len(answers) - 1, lambda record: said)
    return cards


def _card(found: Sequence[Pair], title: str, kind: str, blamed: int, why: Callable[[Record], str]) -> list[Card]:
    """The shortest one whose blamed answer has a step to mark, else the shortest."""
    if not found:
        return []
    by_size = sorted(found, key=lambda each: (_size(each[1]), each[0]))
    place, records = next((each for each in by_size[:40] if wrong_step(each[1][blamed])), by_size[0])
    texts = tuple({"pieces": pieces(each, LONGEST), "cut": len(each["completion"]) > LONGEST} for each in records)
    return [Card(title, kind, why(records[blamed]), place, texts)]


def _size(records: Sequence[Record]) -> int:
    """An answer of a few letters says nothing, and is no example."""
    sizes = [len(record["completion"].strip()) for record in records]
    return len(records[0]["question"]) + sum(sizes) + (10_000 if min(sizes) < 20 else 0)


def _category(record: Record) -> str:
    return str(record["diagnosis"]["category"])


def _words(record: Record) -> str:
    """What went wrong; the rule that decides may call an answer wrong that the robust one takes."""
    return _label(_category(record))


def _label(category: str) -> str:
    return "another number is read" if category == "correct" else CATEGORIES[category]
