"""What each update of `--recipe grpo` showed of the policy, and when that is a reason to end the run.

The loss of a policy gradient says nothing of progress: its value is that of the advantages, whose mean is 0. What does
is the reward on problems that nobody chose. What warns is the entropy, which falls where a policy collapses to a few
answers, and the share of answers that the length limit cut, whose reward is 0 without an error.

Everything here is pure: the same figures end a run at the same update, wherever it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from gsm8k_core.config.stored import Count, Seconds, Stored
from gsm8k_core.rollouts.group import Sampled, is_cut, num_drawn

WINDOW = 4  # updates whose mean is looked at: 64 problems, as they are asked by default
LEAST_ENTROPY = 1 / 3  # of that of the first WINDOW updates
MOST_CUT = 0.2  # of the answers
STOP_ENTROPY, STOP_CUT, STOP_WORSE = "entropy", "cut", "worse"
STOPS = (STOP_ENTROPY, STOP_CUT, STOP_WORSE)

Share = Annotated[float, Field(ge=0, le=1)]


class StoredFigures(Stored):
    """Figures in a checkpoint, typed."""

    asked: Count
    answers: Count
    reward: float
    solve_rate: Share
    mixed: Share
    length: Annotated[float, Field(ge=0)]
    cut: Share
    entropy: float
    tokens: Count
    sampling_seconds: Seconds
    clipped: Share
    kl: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one update; of the problems that are asked whatever they give, but for `asked`, `answers`, `tokens`, `cut`."""

    asked: int  # problems; 0 in an update whose answers an earlier one has sampled
    answers: int
    reward: float  # mean of their answers
    solve_rate: float  # share of the problems with an answer of the highest reward, 1
    mixed: float  # share of the groups whose answers differ
    length: float  # tokens of an answer, in the mean
    cut: float  # share of the answers that reached the length limit
    entropy: float  # nats a token
    tokens: int  # sampled
    sampling_seconds: float
    clipped: float  # share of the targets
    kl: float | None  # nats a target, against the first weights; None where it was not asked for

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Figures:
        """Of a checkpoint that was checked."""
        return cls(**{name: values[name] for name in cls.__slots__})


def figures(sampled: Sampled, fresh: bool, clipped: float, kl: float | None) -> Figures:
    """Of an update of the rollout; `fresh`: its first one."""
    first, answers = sampled.groups[: sampled.num_first], sampled.answers
    own = [answer for group in first for answer in group.answers]
    return Figures(
        asked=len(sampled.groups) if fresh else 0,
        answers=len(answers),
        reward=fmean(reward for group in first for reward in group.rewards),
        solve_rate=fmean(max(group.rewards) >= 1 for group in first),
        mixed=fmean(group.mixed for group in first),
        length=fmean(map(num_drawn, own)),
        cut=fmean(map(is_cut, answers)),
        entropy=sampled.entropy,
        tokens=sum(map(num_drawn, answers)) if fresh else 0,
        sampling_seconds=sampled.seconds if fresh else 0.0,
        clipped=clipped,
        kl=kl,
    )


def reason_to_end(history: Sequence[Figures]) -> str | None:
    """Whether the updates so far are a reason to end: STOP_ENTROPY, STOP_CUT, or None.

    Rollouts are counted: several updates on one have its figures, and would count them again.
    """
    history = [each for each in history if each.asked]
    if len(history) < WINDOW:
        return None
    newest = history[-WINDOW:]
    if fmean(each.cut for each in newest) > MOST_CUT:
        return STOP_CUT
    if len(history) >= 2 * WINDOW:
        began = fmean(each.entropy for each in history[:WINDOW])
        if fmean(each.entropy for each in newest) < LEAST_ENTROPY * began:
            return STOP_ENTROPY
    return None
