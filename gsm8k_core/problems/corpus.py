"""More rows than can be tokenised before training begins: each update's are made when it is asked for.

Tokenising is most of the wait before a first update (2 cores: a millisecond a row, six minutes for the 395,000 of
MetaMathQA), and of a large set a time budget uses a part. So a Corpus keeps the problems as text. What has to be known
of all rows beforehand is told from a sample of them: their lengths, by a straight line over their characters; and
whether `--max-length` would lose too many. A row that turns out longer than that is left out of its update whole, as it
is of a smaller set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from gsm8k_core.types import DataError, Example, Problem

MOST_TOKENISED = 10_000  # rows; more are a corpus
SAMPLE_ROWS = 1_000

Make = Callable[[Sequence[Problem]], list[Example]]


def sampled(problems: Sequence[Problem]) -> list[Problem]:
    """SAMPLE_ROWS of them, at like distances."""
    return [problems[place] for place in np.linspace(0, len(problems) - 1, SAMPLE_ROWS).astype(int)]


class Corpus(Sequence[Example]):
    """The rows of many problems. `sample` holds the rows of sampled(problems), made by `make`; `content` is their hash.

    `width` is the length, padded, that none is longer than.
    """

    def __init__(
        self, problems: Sequence[Problem], make: Make, sample: Sequence[Example], max_length: int, content: str
    ) -> None:
        self._problems, self._make, self.max_length = problems, make, max_length
        self.left_out: set[str] = set()  # ids of rows that were too long, or could not be made
        known = sampled(problems)
        line = np.polyfit([_size(problem) for problem in known], [len(row.tokens) for row in sample], 1)
        sizes = np.fromiter(map(_size, problems), np.float64, len(problems))
        self._lengths = np.clip(np.rint(np.polyval(line, sizes)), 2, max_length).astype(np.int32)
        digest = hashlib.sha256(f"corpus 1:{content}:{len(problems)}:{max_length}".encode())
        for row in sample:
            digest.update(f"{row.id}:{row.num_prompt}:{row.tokens}".encode())
        self.hash = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        """Made anew each time: nothing goes over the rows one by one."""
        problems = self._problems[place] if isinstance(place, slice) else [self._problems[place]]
        rows = self._make(problems)
        return rows if isinstance(place, slice) else rows[0]

    def take(self, places: Sequence[int]) -> list[Example]:
        """The rows of one update, made together; those that are too long are left out."""
        rows = self._fitting([self._problems[place] for place in places])
        after = places[-1]
        for _ in range(len(self)):  # an update has a row at least: the next one that fits
            if rows:
                return rows
            after = (after + 1) % len(self)
            rows = self._fitting([self._problems[after]])
        raise DataError(f"every row is longer than --max-length {self.max_length}; give more")

    def outline(self, places: Sequence[int]) -> list[Example]:
        """Rows of about the lengths of those, without their tokens."""
        return [Example(self._problems[place].id, range(self._lengths[place]), 1) for place in places]  # type: ignore[arg-type]

    def longest(self, count: int) -> list[Example]:
        """So many of the rows that seem the longest."""
        places = np.argsort(-self._lengths, kind="stable")[: max(count, 1)]
        return self.take([int(place) for place in places])

    def _fitting(self, problems: Sequence[Problem]) -> list[Example]:
        kept = [row for row in self._made(problems) if len(row.tokens) <= self.max_length]
        self.left_out |= {problem.id for problem in problems} - {row.id for row in kept}
        return kept

    def _made(self, problems: Sequence[Problem]) -> Iterable[Example]:
        try:
            return self._make(problems)
        except DataError:  # of one row; it is found by itself, and left out
            return self._one_by_one(problems)

    def _one_by_one(self, problems: Sequence[Problem]) -> Iterator[Example]:
        for problem in problems:
            try:
                yield from self._make([problem])
            except DataError:
                continue


def _size(problem: Problem) -> int:
    return len(problem.question) + len(problem.answer)
