"""An evaluation that ends in time: problems in a fixed random order, in blocks, each begun only where it will fit.

What counts are whole blocks. Of a block that ran out of time those answers are there that ended first, which are the
short ones: they are kept for the next time, and count nowhere now. So the problems that count are a random sample of
all, whatever the answers are like, and the same whichever model answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gsm8k_core.clock import Clock
from gsm8k_core.types import PreflightError, Problem, counted

Deadline = Callable[[], bool]  # true: stop now
Records = list[dict[str, Any]]

FIRST = 8  # problems in the first block, which shows how fast it goes
GROWTH = 4  # each later block is at most so many times what is there
CAREFUL = 0.8  # of the time that is left is what a block is chosen for


class TimeUp(BaseException):
    """Raised by our own callback inside `generate`; no `except Exception` on the way out may swallow it."""


def checking(deadline: Deadline) -> Callable[..., None]:
    """A callback that raises TimeUp once `deadline` is true."""

    def check(*unused: int) -> None:
        if deadline():
            raise TimeUp

    return check


def in_random_order(problems: Sequence[Problem]) -> list[Problem]:
    """By the sha256 of what they ask: the same on every machine, and no problem's place depends on the others'."""
    return sorted(problems, key=lambda each: hashlib.sha256(f"{each.id}\n{each.question}".encode()).digest())


@dataclass(frozen=True, slots=True)
class Limit:
    """When an evaluation has to end, by its clock, and how many problems it is asked at most."""

    asked: str  # as the person wrote it
    until: float
    clock: Clock
    most: int | None = None

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - self.clock()

    def share(self, share: float) -> Limit:
        """A part of what is left now."""
        return Limit(self.asked, self.clock() + share * self.left, self.clock, self.most)


def answer_in_time(
    problems: Sequence[Problem], limit: Limit, ask: Callable[[Sequence[Problem], Callable[..., None]], float]
) -> int:
    """How many of `problems`, the first ones, were answered before the limit's end.

    `ask` has all of those answered that it is given and says how many of them were not there yet; the callback it gets
    is to be called before the first token and after each, and raises TimeUp: what is there needs no time. Raises
    PreflightError where not even the first block ended.
    """
    total = min(len(problems), limit.most or len(problems))
    check = checking(lambda: limit.left <= 0)
    done, size, each = 0, min(FIRST, total), 0.0
    while size > 0:
        began = limit.clock()
        try:
            asked = ask(problems[: done + size], check)
        except TimeUp:
            break
        if asked:
            each = (limit.clock() - began) / asked
        done += size
        fits = int(CAREFUL * limit.left / each) if each > 0 else total
        size = max(0, min(fits, (GROWTH - 1) * done, total - done))
    if not done:
        raise too_short(limit, total)
    return done


def too_short(limit: Limit, total: int) -> PreflightError:
    """That the time ended before the first block of `total` problems did."""
    first = min(FIRST, total)
    what = "problem was" if first == 1 else f"{first} problems were"
    return PreflightError(
        f"--max-time {limit.asked} ended before the first {what} answered; give a longer --max-time, or a smaller "
        "--max-new-tokens (what is answered is kept, and goes on from there)"
    )


def time_line(time: Mapping[str, Any]) -> str:
    """One line on how far it came; `time` is the summary's."""
    if time["n"] == time["of"]:
        return f"time     all {counted(time['of'], 'problem')} fitted into --max-time {time['max_time']}"
    return (
        f"time     {time['n']:,} of {time['of']:,} problems, a random sample that is the same for every model: "
        f"no more fitted into --max-time {time['max_time']}"
    )
