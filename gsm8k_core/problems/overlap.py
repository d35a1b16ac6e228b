"""Whether the problems that a model is tested on are among the questions that it was trained on.

Two questions are the same word for word, or folded: without regard to case, spaces and punctuation. Numbers are kept
as they are, but for the commas between thousands, and so are the signs of a sum: 3 + 4 is not 3 - 4. A run keeps the
hashes of its questions in questions.json, so that any later test can be held against them. Of a model whose questions
are not known, nothing is said but that nothing was checked.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gsm8k_core.config.stored import Count, Stored, stored
from gsm8k_core.files import read_json, write_json
from gsm8k_core.types import DataError, Problem

QUESTIONS = "questions.json"
FOLDING = 1  # the version of `folded`: hashes of another one say nothing
HASH_BYTES = 8  # of 400,000 questions and 1,319 problems, two unlike ones are alike once in 3e10 times
MOST_IDS = 100  # kept in the JSON
_WORDS = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+|\d+|-(?=\d)|[+*/=<>%^×÷]")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_PLAIN = str.maketrans(dict.fromkeys('!"#$&():;?@[\\]_`{|}~', " ") | {"'": "", "\N{RIGHT SINGLE QUOTATION MARK}": ""})
_PLAIN |= str.maketrans({"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"})


def folded(question: str) -> str:
    """The words, numbers and signs of sums, a space between them: what is left when everything else is folded.

    "Tom's 1,200 EGGS -  how many?" gives "toms 1200 eggs how many".
    """
    text = question if question.isascii() else unicodedata.normalize("NFKC", question)
    words = text.casefold().translate(_PLAIN).split()
    kept = " ".join(filter(None, [word if word.isalpha() else _parts(word) for word in words]))
    if " - " in kept:  # of a sum, or a dash
        words = kept.split()
        kept = " ".join(word for word, after in pairwise([*words, ""]) if word != "-" or after[:1].isdigit())
    return kept or question


@lru_cache(maxsize=1 << 14)  # few words, many times
def _parts(word: str) -> str:
    """What is kept of a word that is not letters alone."""
    if word == "-":
        return word
    found = _WORDS.findall(word)
    return " ".join(each.replace(",", "") if _THOUSANDS.fullmatch(each) else each for each in found)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


@dataclass(frozen=True)
class Questions:
    """Those that a model was trained on. `whole`: whether these are all, its base's own run included."""

    exact: frozenset[bytes] = frozenset()
    folded: frozenset[bytes] = frozenset()
    whole: bool = True

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Questions:
        texts = {problem.question for problem in problems}
        return cls(frozenset(map(_hash, texts)), frozenset(_hash(folded(text)) for text in texts))

    def __or__(self, other: Questions) -> Questions:
        return Questions(self.exact | other.exact, self.folded | other.folded, self.whole and other.whole)

    def write(self, folder: Path) -> None:
        """Into a run's folder."""
        sets = {"exact": self.exact, "folded": self.folded}
        packed = {name: base64.b64encode(b"".join(sorted(hashes))).decode() for name, hashes in sets.items()}
        write_json(
            folder / QUESTIONS,
            {"schema": 1, "folding": FOLDING, "count": len(self.exact), "whole": self.whole, **packed},
        )

    def met(self, problems: Sequence[Problem]) -> Overlap:
        """How many of the problems are among them."""
        if not self.whole:
            return Overlap(why="its base is the model of a run whose questions are not known")
        exact = [problem.id for problem in problems if _hash(problem.question) in self.exact]
        alike = [problem.id for problem in problems if _hash(folded(problem.question)) in self.folded]
        ids = list(dict.fromkeys([*exact, *alike]))
        return Overlap(True, len(self.exact), len(problems), len(ids), len(exact), tuple(ids[:MOST_IDS]))


class _File(Stored):
    folding: Literal[1]
    count: Count
    whole: bool
    exact: str = Field(max_length=1 << 26)
    folded: str = Field(max_length=1 << 26)


def read_questions(folder: Path) -> Questions | None:
    """Those of a run; None where it kept none, as older ones did. Raises DataError for a damaged file."""
    path = folder / QUESTIONS
    if not path.is_file():
        return None
    advice = "remove it, and nothing is checked"
    found = stored(_File, read_json(path), path, advice)
    try:
        exact, alike = (base64.b64decode(text, validate=True) for text in (found.exact, found.folded))
    except ValueError:
        raise DataError(f"{path} is damaged; {advice}") from None
    if len(exact) != HASH_BYTES * found.count or len(alike) % HASH_BYTES:
        raise DataError(f"{path} is damaged; {advice}")
    return Questions(_cut(exact), _cut(alike), found.whole)


def _cut(packed: bytes) -> frozenset[bytes]:
    return frozenset(packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES))


@dataclass(frozen=True)
class Overlap:
    """What was found, or `why` nothing was checked."""

    checked: bool = False
    questions: int = 0  # trained on
    problems: int = 0  # tested on
    shared: int = 0  # of these, among the questions
    word_for_word: int = 0  # of these, letter by letter
    ids: tuple[str, ...] = field(default=())
    why: str = ""

    @cached_property
    def line(self) -> str:
        """One line for a person."""
        if not self.checked:
            return f"not checked: {self.why}"
        trained = f"the {self.questions:,} questions trained on"
        if not self.shared:
            return f"none of the {self.problems:,} test problems is among {trained} (case, spaces, punctuation aside)"
        be = "is" if self.shared == 1 else "are"
        return (
            f"{self.shared:,} of the {self.problems:,} test problems {be} among {trained}, {self.word_for_word:,} word "
            "for word: of these, a score says what was learned by heart"
        )

    def as_json(self) -> dict[str, Any]:
        """For a summary and for run.json."""
        names = ("checked", "questions", "problems", "shared", "word_for_word", "why")
        return {**{name: getattr(self, name) for name in names}, "ids": list(self.ids), "line": self.line}
