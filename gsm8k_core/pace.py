"""How long things take here. An update: seconds per padded token, learned from the updates of this process.

Updates differ in their padded tokens, and those are known for every coming one. The first update compiles, fills
caches and loads libraries, so it counts only as long as there is no other. A single hiccup must not steer a run:
what is more than twice, or less than half, the median of the last RECENT updates is taken as twice, or half of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median

WINDOW = 32  # updates that the estimate is made of: a laptop that gets hot is another machine than it was
RECENT = 8  # updates that say how fast it is just now
OUTLIER = 2.0


class Pace:
    """`tokens` holds the padded tokens of the run's updates from the first on; later ones are taken for average."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._sums = [0, *accumulate(tokens)]
        self._average = fmean(tokens) if tokens else 1.0
        self._measured: list[float] = []  # seconds per token of each update, in order
        self.longest = 0.0

    @property
    def num(self) -> int:
        """Updates that were measured."""
        return len(self._measured)

    def tokens(self, first: int, last: int) -> float:
        """Padded tokens of the updates from `first` to `last`; without any known, each update counts 1."""
        return self._before(last + 1) - self._before(first) if last >= first else 0.0

    def _before(self, update: int) -> float:
        known = min(update, len(self._sums))
        return self._sums[known - 1] + self._average * (update - known)

    def add(self, update: int, seconds: float) -> None:
        self._measured.append(seconds / self.tokens(update, update))
        self.longest = max(self.longest, seconds)

    def seconds(self, first: int, last: int) -> float:
        """What the updates from `first` to `last` are expected to take; 0 before one was measured."""
        kept = self._kept()
        return fmean(kept) * self.tokens(first, last) if kept else 0.0

    def at_most(self, update: int) -> float:
        """What that update takes if it is as slow as the slowest of the last ones."""
        return max(self._without_first()[-RECENT:], default=0.0) * self.tokens(update, update)

    def doubt(self, update: int) -> float:
        """What that update may take beyond its expected seconds, a hiccup apart."""
        kept = self._kept()[-RECENT:]
        return max(kept) * self.tokens(update, update) - self.seconds(update, update) if kept else 0.0

    def _without_first(self) -> list[float]:
        return self._measured[1:] or self._measured

    def _kept(self) -> list[float]:
        recent = self._without_first()[-WINDOW:]
        if not recent:
            return []
        middle = median(recent[-RECENT:])
        return [min(max(value, middle / OUTLIER), middle * OUTLIER) for value in recent]


@dataclass(slots=True)
class Times:
    """Seconds that one kind of work took in this process; `guess` until one was measured."""

    guess: float = 0.0
    num: int = 0
    total: float = 0.0
    longest: float = 0.0
    shortest: float = math.inf

    def add(self, seconds: float) -> None:
        self.num += 1
        self.total += seconds
        self.longest, self.shortest = max(self.longest, seconds), min(self.shortest, seconds)

    @property
    def mean(self) -> float:
        return self.total / self.num if self.num else self.guess

    @property
    def most(self) -> float:
        return self.longest if self.num else self.guess

    @property
    def least(self) -> float:
        return self.shortest if self.num else 0.0
