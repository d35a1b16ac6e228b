"""A problem's answers that are compared with one another, and the rollout that they were sampled in.

What a checkpoint keeps of a rollout is what was drawn: texts and verdicts are made anew whenever it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from gsm8k_core.config.stored import Count, Seconds, Stored, stored
from gsm8k_core.rollouts.objective import advantages
from gsm8k_core.rollouts.record import Decode, Rollout, judged
from gsm8k_core.scoring.evaluate import StoredAnswer, drawn
from gsm8k_core.types import DataError, Example, Problem

Overlong = Literal["mask", "punish"]
Reward = Callable[[Rollout], float]


@dataclass(frozen=True, slots=True)
class AnswerGroup:
    """All answers to one problem, with their rewards."""

    problem: str
    answers: tuple[Rollout, ...]
    rewards: tuple[float, ...]

    @property
    def mixed(self) -> bool:
        """Whether they differ: only then does one say something about another."""
        return len(set(self.rewards)) > 1

    @property
    def advantages(self) -> tuple[float, ...]:
        """Of each answer."""
        return advantages(self.rewards)


def num_drawn(answer: Rollout) -> int:
    """Tokens that the model drew, the end token among them: those that may be trained."""
    return len(answer.completion.ids) - len(answer.completion.forced)


def is_cut(answer: Rollout) -> bool:
    """Whether it reached the length limit."""
    return answer.completion.finish_reason == "length"


def row_of(answer: Rollout, prompt: Sequence[int]) -> Example:
    """The answer as a row: the ids that were drawn, and the end token where one was. What was forced is no target."""
    forced = tuple(len(prompt) + place for place in answer.completion.forced)
    return Example(name_of(answer), (*prompt, *answer.completion.ids), len(prompt), forced)


def name_of(answer: Rollout) -> str:
    """The id of its row."""
    return f"{answer.problem.id}/own-{answer.sample}"


@dataclass(frozen=True, slots=True)
class Sampled:
    """One rollout: the groups of all problems that were asked, in order."""

    number: int  # from 0
    groups: tuple[AnswerGroup, ...]
    num_first: int  # of the groups, those that are asked whatever they give: the figures are theirs
    seconds: float  # of sampling
    entropy: float  # nats a token, see policy.py
    then: Mapping[str, tuple[float, ...]]  # row -> log p of its targets when it was sampled; empty for one update

    @property
    def mixed(self) -> list[AnswerGroup]:
        """The groups that are trained."""
        return [group for group in self.groups if group.mixed]

    @property
    def answers(self) -> list[Rollout]:
        """Of all groups."""
        return [answer for group in self.groups for answer in group.answers]

    @property
    def compared(self) -> list[Rollout]:
        """The answers of the mixed groups; without one, the first answer of all: an update is never empty."""
        return [answer for group in self.mixed for answer in group.answers] or self.answers[:1]

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint between two updates of one rollout."""
        return {
            "number": self.number,
            "num_first": self.num_first,
            "seconds": self.seconds,
            "entropy": self.entropy,
            "then": {name: list(values) for name, values in self.then.items()},
            "answers": [
                {"id": each.problem.id, "sample": each.sample, **drawn(each.completion)} for each in self.answers
            ],
        }


class StoredSampled(Stored):
    """A Sampled in a checkpoint, typed."""

    number: Count
    num_first: Annotated[int, Field(ge=1)]
    seconds: Seconds
    entropy: float
    then: dict[str, list[float]]
    answers: Annotated[list[StoredAnswer], Field(min_length=1)]


def read_sampled(
    values: Mapping[str, Any], problems: Mapping[str, Problem], decode: Decode, vocabulary: int, reward: Reward
) -> Sampled:
    """A rollout of a checkpoint. Raises DataError for one that no run writes."""
    where, advice = "the checkpoint's rollout", "go on from another checkpoint, or start a new run"
    found = stored(StoredSampled, values, where, advice)
    groups: dict[str, list[Rollout]] = {}
    for each in found.answers:
        if each.id not in problems:
            raise DataError(f"{where}: {each.id[:60]!r} is no problem of this run; {advice}")
        try:
            completion = each.completion
        except ValueError as error:
            raise DataError(f"{where}: {error}; {advice}") from None
        if max(completion.ids, default=0) >= vocabulary:
            raise DataError(f"{where}: a token that the model does not know; {advice}")
        groups.setdefault(each.id, []).append(judged(problems[each.id], each.sample, completion, decode, 0.0))
    made = tuple(grouped(name, answers, reward) for name, answers in groups.items())
    then = {name: tuple(logs) for name, logs in found.then.items()}
    every = [answer for group in made for answer in group.answers]
    if found.num_first > len(made) or len({name_of(answer) for answer in every}) < len(every):
        raise DataError(f"{where}: its groups are not those of a run; {advice}")
    sampled = Sampled(found.number, made, found.num_first, found.seconds, found.entropy, then)
    if any(len(then.get(name_of(each), ())) != num_drawn(each) for each in sampled.compared):
        raise DataError(f"{where}: an answer and its log-probabilities are not of one length; {advice}")
    return sampled


def grouped(problem: str, answers: Sequence[Rollout], reward: Reward) -> AnswerGroup:
    """A group of judged answers."""
    return AnswerGroup(problem, tuple(answers), tuple(reward(answer) for answer in answers))
