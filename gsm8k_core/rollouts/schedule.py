"""How `--recipe rft` spends its time: the phases of a run, the end of each, and what is decided on the way.

    guard, [warm], (sample, train) x R, guard, save

The guards and the save are the pilot's, as for SFT. What is between them is divided by shares: sampling as long as
training, in all; of training, the last round has twice what each before it has, since its model is the one that is
kept. A warm start takes a quarter of the whole. A phase that ends early passes on what it left: each end is made when
its phase begins, from what is left then, and is kept in run.json, so that a run that goes on has the same one.

Each round trains from the first weights on all that was kept so far (Singh et al. 2023, arXiv 2312.06585, ReST-EM;
Zelikman et al. 2022, arXiv 2203.14465, STaR): a model that is trained on and on drifts.

Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["warm", "sample", "train"]

WARM = Fraction(1, 4)  # of all that is divided
FIRST_BLOCK = Fraction(1, 8)  # of all that is divided, at most, for the answers that decide about a warm start
SAMPLING = Fraction(1, 2)  # of the rounds' time
LONGEST_DELAY = Fraction(1, 2)  # of what is left at a sampling's planned end
LAST = 2  # shares of the last round's training; each other has one
ENOUGH_PROBLEMS = 1000  # that each of two rounds has to have time for, or all
MOST_ROUNDS = 2  # that are chosen; more pay little (ReST-EM), and may be asked for
FIRST_ANSWERS = 64  # that say how fast the model answers, and how often it is verified
FEWEST_RIGHT = 5  # of them with the gold number, to say whether steps can be read
WARM_BELOW = 0.10  # of the base's answers are verified: below, it learns the form from human rows first
CANNOT_PAY_BELOW = 0.03  # and below this after that


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a run between its guards."""

    kind: Kind
    round: int  # from 1; 0: the warm start

    @property
    def name(self) -> str:
        """warm, sample-1, train-1, ..."""
        return f"{self.kind}-{self.round}" if self.round else self.kind


def phases(rounds: int, warm: bool) -> list[Phase]:
    """All of them, in order."""
    kinds: tuple[Kind, ...] = ("sample", "train")
    ones = [Phase(kind, number) for number in range(1, rounds + 1) for kind in kinds]
    return [Phase("warm", 0), *ones] if warm else ones


def share(phase: Phase, rounds: int, warm: bool) -> Fraction:
    """Of all that is divided between the phases: the shares of one plan sum to 1."""
    if phase.kind == "warm":
        return WARM
    left = 1 - WARM if warm else Fraction(1)
    if phase.kind == "sample":
        return left * SAMPLING / rounds
    return left * (1 - SAMPLING) * (LAST if phase.round == rounds else 1) / (rounds - 1 + LAST)


def end_of(phase: Phase, rounds: int, warm: bool, now: float, end: float) -> float:
    """When the phase that begins now has to end, in seconds of the run; `end` is that of all that is divided."""
    planned = phases(rounds, warm)
    to_come = sum(share(each, rounds, warm) for each in planned[planned.index(phase) :])
    return now + max(end - now, 0.0) * float(share(phase, rounds, warm) / to_come)


def end_of_first_block(now: float, end: float) -> float:
    """When the base's first answers have to be there, in seconds of the run."""
    return now + max(end - now, 0.0) * float(FIRST_BLOCK)


def longer_sampling(end: float, last: float, training: float) -> float:
    """When a round's sampling may end where all that follows, with as many rows as are kept so far, takes `training`
    seconds.

    That is its planned `end`, or later where what follows has time to spare before `last`: rows are what is short. But
    never later than in the middle between the two: what the rows will take is an estimate, and more will be kept.
    """
    return max(end, min(last - training, end + (last - end) * float(LONGEST_DELAY)))


def rounds_that_fit(left: float, seconds_an_answer: float, num_problems: int) -> int:
    """How many rounds to plan for the `left` seconds: two only where each can ask ENOUGH_PROBLEMS, or all."""
    sampling = left * float(share(Phase("sample", 1), MOST_ROUNDS, warm=False))
    enough = sampling >= seconds_an_answer * min(ENOUGH_PROBLEMS, num_problems)
    return MOST_ROUNDS if enough else 1


def needs_warm_start(verified: int, answers: int) -> bool:
    """Whether the base gives too few verified answers to learn from itself."""
    return verified < WARM_BELOW * answers


def cannot_pay(verified: int, answers: int) -> bool:
    """Whether a kept row costs more than it can give."""
    return verified < CANNOT_PAY_BELOW * answers


def tokens_a_row(lengths: Sequence[int], verified: int) -> float | None:
    """Tokens that are written for each verified answer; None where there is none."""
    return sum(lengths) / verified if verified else None
