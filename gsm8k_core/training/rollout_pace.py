"""How long updates take that sample what they train on: their tokens are not known beforehand.

Two things are learned, each as budget.Pace learns: the seconds of a problem that is asked, and those of the rest of an
update. How many problems an update asks differs, since more are asked where few groups are mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from gsm8k_core.training.budget import RECENT, WINDOW, Pace

Asked = Callable[[int], tuple[int, float]]  # update -> problems that it asked, and the seconds of asking


class RolloutPace:
    """Pace of such updates; the first of each `per_rollout` samples, and the others train on the same answers."""

    def __init__(self, per_rollout: int, asked: Asked, before: float = 0.0) -> None:
        """`before`: seconds that an update's training is thought to take until one was measured."""
        self._before = before
        self._per_rollout, self._asked_in = per_rollout, asked
        self._problems, self._rest = Pace(), Pace()  # seconds a problem, and of all else
        self._asked: list[int] = []  # problems of each rollout
        self.longest = 0.0

    @property
    def num(self) -> int:
        """Updates that were measured."""
        return self._rest.num

    @property
    def rest(self) -> float:
        """Seconds that an update takes at most beside its sampling; what it is thought to before one was measured."""
        return self._rest.at_most(1) if self.num else self._before

    def add(self, update: int, seconds: float) -> None:
        """An update that is done."""
        asked, sampling = self._asked_in(update)
        if asked:
            self._asked.append(asked)
            self._problems.add(len(self._asked), min(sampling, seconds) / asked)
        self._rest.add(self.num + 1, max(seconds - sampling, 0.0))
        self.longest = max(self.longest, seconds)

    def seconds(self, first: int, last: int) -> float:
        """What the updates from `first` to `last` are expected to take; 0 before anything was measured."""
        if last < first:
            return 0.0
        asked = fmean(self._asked[-WINDOW:]) if self._asked else 0.0
        return asked * self._problems.seconds(1, self._rollouts(first, last)) + self._rest.seconds(1, last - first + 1)

    def at_most(self, update: int) -> float:
        """What that update takes if it is as slow as the slowest of the last ones, and asks as many problems."""
        asked = max(self._asked[-RECENT:], default=0) if self._rollouts(update, update) else 0
        return asked * self._problems.at_most(1) + self.rest

    def doubt(self, update: int) -> float:
        """What that update may take beyond its expected seconds, a hiccup apart."""
        return max(self.at_most(update) - self.seconds(update, update), 0.0)

    def _rollouts(self, first: int, last: int) -> int:
        """How many of the updates sample."""
        return -(-last // self._per_rollout) - -(-(first - 1) // self._per_rollout)
