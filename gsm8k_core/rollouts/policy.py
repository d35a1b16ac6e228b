"""The updates of `--recipe grpo`: sampled by the weights that are trained, judged, weighed, cut into micro-batches.

An iterator of updates is asked for the next one only when the pilot has heard of the one before (see backend.py): what
it generates and scores is by the weights as they are then. One rollout, in words:

1. `prompts` problems are asked, `samples` answers to each, at temperature 1 over the whole vocabulary: the policy that
   is trained is the one that sampled. What is drawn depends on the seed, the problem and the number of the sample,
   which counts on over the rollouts.
2. The reward of an answer is 1 where it is verified, else 0. A group of answers that are all alike says nothing and is
   left out; more problems are asked until ENOUGH_MIXED groups, or half as many as `prompts` where that is fewer, are
   mixed, or order.MOST_ASKED times as many were asked.
3. Each answer of a mixed group becomes a row. An answer that was cut counts in its group's mean and, with `mask`, is
   not trained; with `punish` it is, as a wrong one. Tokens that were forced are read and never trained; the end token
   that was drawn is trained.
4. The update's rows get their weights (objective.py). In the first update of a rollout the ratio is 1; in later ones,
   and where the first weights are compared with, the rows are scored by the weights as they are now.

Where no group is mixed, one row goes into the update with weights of 0: it adds nothing, and AdamW goes on by its
momentum alone.

The entropy is estimated: minus the mean of log p over the tokens that were drawn in the first answer to each problem.
At temperature 1 this is without bias, and costs a forward pass over one answer of `samples`.

So the stream is a function of (seed, update, weights): nothing but a checkpoint is needed to go on. Between two
updates of one rollout, whose weights are gone, the checkpoint keeps the rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.problems.batching import budgeted
from gsm8k_core.rollouts.group import (
    AnswerGroup,
    Overlong,
    Reward,
    Sampled,
    grouped,
    is_cut,
    name_of,
    num_drawn,
    row_of,
)
from gsm8k_core.rollouts.objective import Objective, Weighed
from gsm8k_core.rollouts.order import chunks
from gsm8k_core.rollouts.record import Decode, Rollout, judged
from gsm8k_core.rollouts.round import Ended
from gsm8k_core.rollouts.watch import Figures, figures
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.types import Batch, Completion, Example, OnToken, Problem, Update

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

ENOUGH_MIXED = 8  # groups; DAPO's dynamic sampling (arXiv 2503.14476) fills a whole batch
Answer = Callable[[Sequence[Ask], OnToken], Sequence[Completion]]  # the answers to requests, in their order
Score = Callable[[Batch], "FloatArray"]  # Backend.score


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What an update is made of."""

    prompts: int  # problems asked at first
    samples: int  # answers to each
    per_rollout: int  # updates
    overlong: Overlong
    objective: Objective
    max_tokens: int  # padded, at most in a micro-batch
    seed: int


@dataclass(slots=True)
class Policy:
    """Makes the updates. `answer` and `score` are by the weights as they are now, `first` by those of the beginning."""

    settings: PolicySettings
    problems: Mapping[str, Problem]
    prompts: Mapping[str, Sequence[int]]
    answer: Answer
    score: Score
    decode: Decode
    reward: Reward
    first: Score | None = None  # None: the policy is not held near the first weights
    elapsed: Callable[[], float] = lambda: 0.0  # seconds of the run
    late: Callable[[], bool] = lambda: False  # asked after each token: the rollout at hand is left
    looked: Callable[[Sequence[Rollout]], None] = lambda answers: None  # told of answers before their reward is asked
    rolled: Callable[[Sampled], None] = lambda sampled: None  # told of a rollout before the first update that it makes
    sampled: Sampled | None = None  # the newest one
    history: list[Figures] = field(default_factory=list)  # of each update so far
    ended: bool = False  # whether it was left because it was late

    def updates(self, total: int) -> Iterator[Update]:
        """Those after the ones in `history`, up to number `total`; fewer where it is late."""
        epoch = math.ceil(len(self.problems) / self.settings.prompts) * self.settings.per_rollout
        for number in range(len(self.history) + 1, total + 1):
            rollout, place = divmod(number - 1, self.settings.per_rollout)
            if self.sampled is None or self.sampled.number != rollout:
                try:
                    self.sampled = self._sample(rollout)
                except Ended:
                    self.ended = True
                    return
            batches, found = self._batches(self.sampled, fresh=place == 0)
            self.history.append(found)
            names = tuple(name for batch in batches for name in batch.rows)
            yield Update(number, (number - 1) // epoch, names, batches)

    def kept(self, update: int) -> dict[str, Any]:
        """For a checkpoint after `update`."""
        between = self.sampled is not None and update % self.settings.per_rollout != 0
        return {
            "history": [each.as_json() for each in self.history[:update]],
            "rollout": self.sampled.as_json() if between and self.sampled else None,
        }

    # --- sampling ---------------------------------------------------------------------------------------------

    def _sample(self, number: int) -> Sampled:
        """Rollout `number` (from 0). Raises Ended where it is late."""
        before, groups, first = self.elapsed(), list[AnswerGroup](), 0
        enough = min(ENOUGH_MIXED, math.ceil(self.settings.prompts / 2))
        for names in chunks(list(self.problems), self.settings.seed, number, self.settings.prompts):
            groups += self._ask(names, number)
            first = first or len(groups)
            if sum(group.mixed for group in groups) >= enough:
                break
        sampled = Sampled(number, tuple(groups), first, self.elapsed() - before, 0.0, {})
        sampled = replace(sampled, entropy=self._entropy(sampled))
        if self.settings.per_rollout > 1:
            sampled = replace(sampled, then=self._then(sampled))
        self.rolled(sampled)
        return sampled

    def _ask(self, names: Sequence[str], number: int) -> list[AnswerGroup]:
        """The groups of some problems."""
        samples = range(number * self.settings.samples, (number + 1) * self.settings.samples)
        asks = [Ask(name, sample) for name in names for sample in samples]

        def check(*unused: int) -> None:
            if self.late():
                raise Ended

        check()
        completions = self.answer(asks, check)
        answers = [
            judged(self.problems[ask.id], ask.sample, completion, self.decode, self.elapsed())
            for ask, completion in zip(asks, completions, strict=True)
        ]
        self.looked(answers)
        width = self.settings.samples
        return [grouped(name, answers[at * width : (at + 1) * width], self.reward) for at, name in enumerate(names)]

    def _entropy(self, sampled: Sampled) -> float:
        """Nats a token, estimated."""
        rows = [self._row(group.answers[0]) for group in sampled.groups[: sampled.num_first]]
        found = [batch.at_targets(self.score(batch)) for batch in budgeted(rows, self.settings.max_tokens)]
        return -float(np.concatenate(found).astype(np.float64).mean())

    def _then(self, sampled: Sampled) -> dict[str, tuple[float, ...]]:
        """log p of the tokens of each answer that may be trained, by the weights that drew them."""
        found: dict[str, tuple[float, ...]] = {}
        for batch in budgeted(list(map(self._row, sampled.compared)), self.settings.max_tokens):
            scores_N, row_N = batch.at_targets(self.score(batch)), row_of_target(batch)
            found |= {name: tuple(scores_N[row_N == place].tolist()) for place, name in enumerate(batch.rows)}
        return found

    # --- updates ----------------------------------------------------------------------------------------------

    def _row(self, answer: Rollout) -> Example:
        return row_of(answer, self.prompts[answer.problem.id])

    def _trained(self, answer: Rollout) -> bool:
        return self.settings.overlong == "punish" or not is_cut(answer)

    def _rows(self, sampled: Sampled) -> list[Example]:
        """The rows that are trained; without one, the first answer of all."""
        answers = [answer for answer in sampled.compared if self._trained(answer)]
        return [self._row(answer) for answer in answers or sampled.compared[:1]]

    def _batches(self, sampled: Sampled, fresh: bool) -> tuple[tuple[Batch, ...], Figures]:
        """The micro-batches of an update, with their weights, and what it showed."""
        plain = budgeted(self._rows(sampled), self.settings.max_tokens)
        num_targets = max(sum(batch.num_targets for batch in plain), 1)
        signs, factors = self._signs(sampled), self._factors(sampled, num_targets)
        batches, clipped, kl = list[Batch](), 0, 0.0
        for batch in plain:
            found = self._weigh(batch, sampled, signs, fresh)
            factors_N = np.array([factors.get(name, 0.0) for name in batch.rows])[row_of_target(batch)]
            batches.append(weighted(batch, found.weights_N * factors_N))
            clipped, kl = clipped + found.num_clipped, kl + found.kl
        drift = kl / num_targets if self.first is not None else None
        return tuple(batches), figures(sampled, fresh, clipped / num_targets, drift)

    def _signs(self, sampled: Sampled) -> dict[str, float]:
        """Row -> advantage."""
        return {
            name_of(answer): advantage
            for group in sampled.mixed
            for answer, advantage in zip(group.answers, group.advantages, strict=True)
        }

    def _factors(self, sampled: Sampled, num_targets: int) -> dict[str, float]:
        """Row -> what its weights are multiplied by, over all answers of the mixed groups."""
        answers = [answer for group in sampled.mixed for answer in group.answers]
        factors = self.settings.objective.factors(list(map(num_drawn, answers)), num_targets)
        return dict(zip(map(name_of, answers), factors, strict=True))

    def _weigh(self, batch: Batch, sampled: Sampled, signs: Mapping[str, float], fresh: bool) -> Weighed:
        row_N = row_of_target(batch)
        advantages_N = np.array([signs.get(name, 0.0) for name in batch.rows], np.float32)[row_N]
        now_N = then_N = first_N = None
        if not fresh or self.first is not None:
            now_N = batch.at_targets(self.score(batch))
        if not fresh:
            then_N = np.array([value for name in batch.rows for value in sampled.then[name]], np.float32)
        if self.first is not None:
            first_N = batch.at_targets(self.first(batch))
        return self.settings.objective.weigh(advantages_N, now_N, then_N, first_N)


def row_of_target(batch: Batch) -> Any:
    """Which row each target stands in, (N,)."""
    return batch.targets().positions_N // batch.labels.shape[1]


def weighted(batch: Batch, weights_N: Any) -> Batch:
    """The batch with a weight for each of its targets."""
    row_N, before_N = divmod(batch.targets().positions_N, batch.labels.shape[1])
    weights_BT = np.zeros(batch.labels.shape, np.float32)
    weights_BT[row_N, before_N + 1] = weights_N
    return replace(batch, weights=weights_BT)
