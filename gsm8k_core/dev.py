"""The dev split during training: its loss, and a few problems answered greedily and graded.

The rows are the same at every update, and the loss is over the very rows that are answered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from gsm8k_core.answers import HEADLINE, grade
from gsm8k_core.batching import micro_batches
from gsm8k_core.headline import HEADLINE_RULE
from gsm8k_core.types import IGNORE_INDEX, Batch, Completion, Example, Problem, Sampling

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

Deadline = Callable[[], bool]  # true: stop now


class Measured(Protocol):
    """The part of the weights in training that is used here."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_token: Callable[[int, int], None]
    ) -> Iterator[tuple[int, Completion]]: ...

    def score(self, batch: Batch) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class DevResult:
    """Loss and answers on the dev rows, after one update."""

    loss: float  # nats per target
    num_targets: int
    num_correct: Mapping[str, int]  # by rule of answers.HEADLINE
    num_problems: int
    num_stopped: int  # answers that an end token closed; the others were cut
    seconds: float
    verdicts: tuple[bool, ...] = ()  # whether each answer is right, as `accuracy` counts; not in older checkpoints

    @property
    def accuracy(self) -> float:
        """By the rule that decides everywhere, as a fraction."""
        return self.num_correct[HEADLINE_RULE] / self.num_problems

    def better_than(self, other: DevResult) -> bool:
        """More accurate; of two as accurate, the one with the lower loss. The same is not better."""
        return (self.accuracy, -_or_inf(self.loss)) > (other.accuracy, -_or_inf(other.loss))

    def values(self) -> dict[str, object]:
        """The numbers of a `dev` event."""
        by_rule = {f"accuracy_{rule}": correct / self.num_problems for rule, correct in self.num_correct.items()}
        return {
            "loss": self.loss,
            "num_targets": self.num_targets,
            "accuracy": self.accuracy,
            "correct": self.num_correct[HEADLINE_RULE],
            "problems": self.num_problems,
            **by_rule,
            "stopped": self.num_stopped,
            "stopped_share": self.num_stopped / self.num_problems,
            "seconds": self.seconds,
        }

    def as_json(self) -> dict[str, object]:
        """For a checkpoint. JSON has no NaN: a loss that is not finite is null."""
        loss = self.loss if math.isfinite(self.loss) else None
        return asdict(self) | {"loss": loss, "num_correct": dict(self.num_correct), "verdicts": list(self.verdicts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DevResult:
        loss = math.nan if values["loss"] is None else values["loss"]
        return cls(**{**values, "loss": loss, "verdicts": tuple(values.get("verdicts", ()))})


def joined(parts: Sequence[DevResult]) -> DevResult:
    """The result on the problems of all parts, which were measured one after another."""
    num_targets = sum(part.num_targets for part in parts)
    correct = {rule: sum(part.num_correct[rule] for part in parts) for rule in parts[0].num_correct}
    return DevResult(
        math.fsum(part.loss * part.num_targets for part in parts) / num_targets,
        num_targets,
        correct,
        sum(part.num_problems for part in parts),
        sum(part.num_stopped for part in parts),
        math.fsum(part.seconds for part in parts),
        tuple(right for part in parts for right in part.verdicts),
    )


def _or_inf(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


class _TimeUp(BaseException):
    """Raised by our own callback inside `generate`; no `except Exception` on the way out may swallow it."""


@dataclass(frozen=True, slots=True)
class DevSet:
    """The dev rows to measure on: the first `eval_problems` of the split, tokenised, and as problems."""

    examples: Sequence[Example]
    problems: Sequence[Problem]
    decode: Callable[[Sequence[int]], str]
    batch_size: int  # rows scored together
    eval_batch_size: int  # problems answered together
    max_new_tokens: int
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not self.examples or [row.id for row in self.examples] != [problem.id for problem in self.problems]:
            raise ValueError("a dev set needs the same rows, one at least, as examples and as problems")

    def part(self, first: int, end: int) -> DevSet:
        """The same measurement on the problems from place `first` to before place `end`."""
        return replace(self, examples=self.examples[first:end], problems=self.problems[first:end])

    def measure(self, live: Measured, deadline: Deadline) -> DevResult | None:
        """Everything, or None when `deadline` came true before the end.

        It is asked before each batch that is scored and after each token that is written.
        """
        before = self.clock()

        def check(*unused: int) -> None:
            if deadline():
                raise _TimeUp

        try:
            loss, num_targets = self._loss(live, check)
            num_correct, num_stopped, verdicts = self._answers(live, check)
        except _TimeUp:
            return None
        seconds = self.clock() - before
        return DevResult(loss, num_targets, num_correct, len(self.problems), num_stopped, seconds, verdicts)

    def _loss(self, live: Measured, check: Callable[[], None]) -> tuple[float, int]:
        sums, num_targets = [], 0
        for batch in micro_batches(self.examples, self.batch_size):
            check()
            mask = batch.labels[:, 1:] != IGNORE_INDEX
            sums.append(math.fsum(live.score(batch)[mask].tolist()))
            num_targets += batch.num_targets
        return -math.fsum(sums) / num_targets, num_targets

    def _answers(self, live: Measured, check: Callable[..., None]) -> tuple[dict[str, int], int, tuple[bool, ...]]:
        """How many are correct under each rule, how many were closed by an end token, and which are right."""
        check()
        correct, num_stopped, right = dict.fromkeys(HEADLINE, 0), 0, [False] * len(self.problems)
        prompts = [row.tokens[: row.num_prompt] for row in self.examples]
        completions = live.generate(prompts, Sampling(self.max_new_tokens, self.eval_batch_size), check)
        try:
            for index, completion in completions:
                verdicts = grade(self.decode(completion.tokens), self.problems[index].answer)
                for rule in HEADLINE:
                    correct[rule] += verdicts[rule].correct
                right[index] = verdicts[HEADLINE_RULE].correct
                num_stopped += completion.finish_reason == "stop"
        finally:
            # A generator left open would keep its cache, and the model in the mode it generates in.
            if close := getattr(completions, "close", None):
                close()
        return correct, num_stopped, tuple(right)
