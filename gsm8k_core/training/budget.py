"""How long the work of a run takes, how many updates its time budget holds, and when its plan is changed for that.

An update takes seconds per padded token, learned from the updates of this process: updates differ in their padded
tokens, and those are known for every coming one. The first update compiles, fills caches and loads libraries, so it
counts only as long as there is no other. Before it, a rehearsed micro-batch says how long it may take. A single hiccup
must not steer a run: what is more than twice, or less than half, the median of the last RECENT updates is taken as
twice, or half of it.

A plan is the number of updates in the whole run; warm-up and decay lie on it, so it is changed for a reason only:

    nothing changes       while what was asked for fits with SPARE to spare
    it becomes smaller    when the run would pass its budget: to what fits with a margin
    it grows back         when clearly more fits than was planned (DRIFT), to at most what was asked for
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median

WINDOW = 32  # updates that the estimate is made of: a laptop that gets hot is another machine than it was
RECENT = 8  # updates that say how fast it is just now
OUTLIER = 2.0
SLOWDOWN_BLOCKS = 100  # of 1 MiB: some tenths of a second

SPARE = 0.15
MARGIN = 0.02  # of the time to go: the next estimate will differ a little
DRIFT = 0.05  # of the updates to go: the time to go would be wrong by as much, were it left so
CALIBRATION = 3  # updates before the first change, unless only about twice as many fit
DOUBT = 2.0  # a rehearsal is one micro-batch, without the step: it plans for less where so much faster is too slow, too


class Pace:
    """How long updates take.

    `tokens` holds the padded tokens of the run's updates from the first on; later ones are taken for average.
    `rehearsed` is what one of them took in a rehearsal, in seconds; 0: there was none, and nothing is known.
    """

    def __init__(self, tokens: Sequence[int] = (), rehearsed: float = 0.0) -> None:
        self.rehearsed = rehearsed
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
        """What the updates from `first` to `last` are expected to take; 0 before anything was measured."""
        kept = self._kept()
        return (fmean(kept) if kept else self.rehearsed) * self.tokens(first, last)

    def at_most(self, update: int) -> float:
        """What that update takes if it is as slow as the slowest of the last ones, or the first as the rehearsal."""
        return max(self._without_first()[-RECENT:], default=self.rehearsed) * self.tokens(update, update)

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


def slowdown() -> float:
    """How many times longer than its work a process waits here: seconds over CPU seconds, of a short piece of work."""
    block, began, worked = bytes(1 << 20), time.monotonic(), time.thread_time()
    for _ in range(SLOWDOWN_BLOCKS):
        hashlib.sha256(block)
    return max((time.monotonic() - began) / max(time.thread_time() - worked, 1e-6), 1.0)


def replan(update: int, total: int, asked: int, *, left: float, needed: Callable[[int], float], unsure: float) -> int:
    """The number of updates to plan after `update`; `total` when nothing is to change.

    `left` is what the budget still holds, `needed(n)` the time from here to the end of the process if the run ends
    after update n, `unsure` what the next one may take beyond its estimate. All in seconds. Where not even the next
    update fits, the plan stays: the pilot ends the run at once.
    """
    if total == asked and (1 + SPARE) * needed(asked) <= left:
        return total

    def fits(number: int) -> bool:
        return (1 + MARGIN) * needed(number) + unsure <= left

    most = _largest(fits, update, asked)
    if needed(total) + unsure > left:
        return most if update < most < total else total
    return most if most - total >= max(1, DRIFT * (total - update)) else total


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from `low` to `high` that fits; `low` when none does."""
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
