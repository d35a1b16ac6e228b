"""A look at the model in training: a few dev problems answered in a few tokens, and how their gold answers end.

It costs PROBE_ROWS prompts, PROBE_TOKENS steps of decoding and PROBE_ROWS forward passes, whatever the model writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from gsm8k_core import health
from gsm8k_core.batching import pad
from gsm8k_core.dev import Measured
from gsm8k_core.types import CollapsedError, Completion, DivergedError, Example, Sampling, StepEvent

PROBE_ROWS = 4
PROBE_TOKENS = health.READ_TOKENS

ADVICE = "go on from an earlier checkpoint with a lower --learning-rate"


def ignore(index: int, token: int) -> None:
    """Nobody listens to the answers as they are written."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The rows to look at, always the same."""

    rows: Sequence[Example]
    end_ids: Collection[int]
    decode: Callable[[Sequence[int]], str]
    clock: Callable[[], float] = time.monotonic

    def __call__(self, update: int, live: Measured) -> StepEvent:
        """The `probe` event of the weights as they are, with its warnings.

        Raises CollapsedError when nothing but token 0 is written, or the logits are not finite.
        """
        before = self.clock()
        try:
            found = self._look(live)
        except DivergedError as error:
            raise CollapsedError(f"probe: {error}", update=update) from error
        if health.collapsed(found):
            raise CollapsedError(
                f"probe: every answer is token 0 and nothing else; {health.TOKEN_0}", update=update, advice=ADVICE
            )
        seconds = self.clock() - before
        warnings = health.warnings(found, update)
        return StepEvent("probe", {"update": update, **found.values(), "seconds": seconds, "warnings": warnings})

    def _look(self, live: Measured) -> health.Vitals:
        prompts = [row.tokens[: row.num_prompt] for row in self.rows]
        answers: dict[int, Completion] = dict(live.generate(prompts, Sampling(PROBE_TOKENS, len(prompts)), ignore))
        completions = [answers[index] for index in range(len(prompts))]
        texts = [self.decode(completion.tokens) for completion in completions]
        return health.vitals(completions, texts, self._ends(live))

    def _ends(self, live: Measured) -> list[float]:
        """log p of the end token of each row, in nats. A template may write more behind it, which nobody reads."""
        ends = []
        for row in self.rows:  # by itself: a padded one would cost as much as the longest
            place = max(place for place, token in enumerate(row.tokens) if token in self.end_ids)
            ends.append(float(live.score(pad([row]))[0, place - 1]))
        return ends
