"""What a round of sampling gave, counted: for run.json, the page and a person.

The solve rate is that of wave 1, which asks every problem once, over its whole blocks: later waves ask the hard
problems alone, and of a block that the clock cut in two only the short answers are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from gsm8k_core.config.stored import Count, Seconds, Stored
from gsm8k_core.rollouts.record import Rollout
from gsm8k_core.scoring.stats import wilson
from gsm8k_core.scoring.verify import Mode

Share = Annotated[float, Field(ge=0, le=1)]


class StoredTally(Stored):
    """A Tally in run.json or round.json, typed."""

    round: Count
    asked: Count  # problems
    answered: Count
    verified: Count
    gold_right: Count
    wrong_step: Count
    kept: Count
    new_chains: Count
    tokens: Count
    forced_tokens: Count
    seconds: Seconds
    solved: Count
    of: Count
    rate: Share | None
    interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None
    refused: dict[Annotated[str, Field(max_length=1000)], Count]


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of answers, unless they say otherwise."""

    round: int
    asked: int  # problems
    answered: int
    verified: int
    gold_right: int  # with the gold number at the end, whatever the steps are
    wrong_step: int  # of those, with a step that is wrong
    kept: int  # as training rows, of this round
    new_chains: int  # kept ones whose equations are not the human answer's, of problems that have one with equations
    tokens: int  # written
    forced_tokens: int  # of those, by the calculator
    seconds: float  # of sampling
    solved: int  # verified answers of wave 1
    of: int  # answers of wave 1
    refused: Mapping[str, int]  # kind of refusal -> answers

    @property
    def rate(self) -> float | None:
        """The share of problems that one answer solves; None where nothing was asked to its end."""
        return self.solved / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of that."""
        return wilson(self.solved, self.of) if self.of else None

    def as_json(self) -> dict[str, Any]:
        """For run.json and round.json."""
        interval = list(self.interval) if self.interval else None
        return {**asdict(self), "refused": dict(self.refused), "rate": self.rate, "interval": interval}


def tally(
    number: int,
    answers: Sequence[Rollout],
    first_wave: Sequence[Rollout],
    kept: Sequence[Rollout],
    human: Mapping[str, tuple[str, ...]],
    mode: Mode,
    seconds: float,
) -> Tally:
    """Count round `number`: `first_wave` are its answers that count for the rate, `human` the chains by problem."""
    refused: dict[str, int] = {}
    for each in answers:
        if reason := each.refusal(mode):
            kind = reason.split(":")[0]
            refused[kind] = refused.get(kind, 0) + 1
    return Tally(
        round=number,
        asked=len({each.problem.id for each in answers}),
        answered=len(answers),
        verified=sum(each.verified(mode) for each in answers),
        gold_right=sum(each.verdict.gold_right for each in answers),
        wrong_step=sum(each.wrong_step for each in answers),
        kept=len(kept),
        new_chains=sum(each.chain != human.get(each.problem.id, each.chain) for each in kept),
        tokens=sum(len(each.completion.tokens) for each in answers),
        forced_tokens=sum(len(each.completion.forced) for each in answers),
        seconds=seconds,
        solved=sum(each.verified(mode) for each in first_wave),
        of=len(first_wave),
        refused=dict(sorted(refused.items(), key=lambda item: (-item[1], item[0]))),
    )
