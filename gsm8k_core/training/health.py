"""Whether answers look like a working model's: what is counted, what is too little, what it means, and when to look.

A collapsed model has a finite loss for a while, and its run goes on for hours. Its answers show it at once: token 0 and
nothing else, one token again and again, no number anywhere. Repetition is counted in an answer's first READ_TOKENS:
fewer show nothing, and a healthy answer that is cut much later may well loop at its end. An end token cannot come that
early, so a probe looks for it where the gold answer ends.

Every threshold stands far from what healthy answers gave. Measured: SmolLM2-135M-Instruct as it is, and after 150
updates; the first 64 tokens of its answers to GSM8K's 1,319 test problems, one by one, and 20,000 groups of four.

A probe looks at the model in training: a few dev problems answered in a few tokens, and how their gold answers end. It
costs PROBE_ROWS prompts, PROBE_TOKENS steps of decoding and PROBE_ROWS forward passes, whatever the model writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from gsm8k_core.problems.batching import pad
from gsm8k_core.scoring.answers import HEADLINE_RULE, RULES
from gsm8k_core.scoring.thinking import split
from gsm8k_core.scoring.timed import Deadline, TimeUp, checking
from gsm8k_core.types import CollapsedError, Completion, DivergedError, Example, Sampling, StepEvent

if TYPE_CHECKING:
    from gsm8k_core.backend import Weights

READ_TOKENS = 64
# Share of token 0 in all tokens. No healthy answer held one. From COLLAPSED on, nothing else is written any more.
MUCH_TOKEN_0 = 0.25
COLLAPSED = 0.99
# Different tokens over tokens, the mean over answers. Healthy: 0.20 at the least in one answer, 0.27 in the mean of
# four. Three tokens in turn: 0.05.
LEAST_DISTINCT = 0.12
# The longest run of one token over the answer's tokens, the mean over answers. Healthy: 0.38 at the most in one answer
# (24 of 64), 0.13 in the mean of four. One token in a row: 1.
LONGEST_RUN = 0.5
# Of fewer tokens no share shows a loop: `9` is all one token, `#### 1000000` by single digits half of one. From here
# on half is eight in a row, which is a number of more than 10^8; no answer of GSM8K's has one.
FEWEST_TOKENS = 16
# Answers without a number. Healthy: 5 % before training, 0.5 % after it, so four of four by chance: 6e-6.
ALL_WITHOUT_NUMBER = 1.0
# Answers without a token, the end token apart. No healthy answer was one.
MUCH_EMPTY = 0.5
FEWEST_ANSWERS = 4  # of fewer, the shares say too little
# Answers that an end token closed, of those with LONG_ENOUGH tokens to do so. Healthy: 67 % and 73 % within 320. Four
# answers that all run on are no rarity (0.5 %).
LEAST_STOPPED = 0.1
LONG_ENOUGH = 256
FEWEST_TO_STOP = 32
# The probability of the end token where the gold answer ends, the mean over rows. Healthy: 0.997 after 50 updates (of
# 16 rows none below 0.995). Not learned: 0.16, which is SmolLM2-135M-Instruct before any update.
LEAST_END = 0.3
ENOUGH_UPDATES = 50

TOKEN_0 = (
    "token 0 ('!' in Qwen's vocabulary) is also what argmax gives for logits that are all NaN; these logits are "
    "finite, so the model has collapsed onto it"
)


@dataclass(frozen=True, slots=True)
class Vitals:
    """Counted over some answers. Shares are fractions."""

    answers: int
    token_0: float  # of all tokens
    distinct: float  # different tokens over tokens, in the first READ_TOKENS, the mean over answers; 1 of an empty one
    longest_run: float  # of one token, over the tokens, in the first READ_TOKENS, the mean over answers; short ones: 0
    no_answer: float  # answers in which the headline rule reads nothing
    stopped: float  # answers that an end token closed
    could_stop: int  # answers that were closed or had LONG_ENOUGH tokens
    end_probability: float | None = None  # where the gold answers end, the mean over rows; None: not measured
    empty: float = 0.0  # answers without a token

    def values(self) -> dict[str, object]:
        """The numbers of a `probe` event; no value is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def vitals(completions: Sequence[Completion], texts: Sequence[str], end_log_p: Sequence[float] = ()) -> Vitals:
    """Count. `texts` are the completions decoded; `end_log_p` is in nats, one a row, where it was measured."""
    if not completions:
        raise ValueError("there are no answers to look at")
    answers = [completion.tokens for completion in completions]
    heads = [tokens[:READ_TOKENS] for tokens in answers]
    num_tokens, extract = sum(map(len, answers)), RULES[HEADLINE_RULE].extract
    stopped = [completion.finish_reason == "stop" for completion in completions]
    could_stop = sum(done or len(tokens) >= LONG_ENOUGH for done, tokens in zip(stopped, answers, strict=True))
    return Vitals(
        len(answers),
        sum(token == 0 for tokens in answers for token in tokens) / max(num_tokens, 1),
        _mean([len(set(tokens)) / len(tokens) if tokens else 1.0 for tokens in heads]),
        _mean([_share_of_run(tokens) for tokens in heads]),
        _mean([extract(split(text).answer) is None for text in texts]),
        _mean(stopped),
        could_stop,
        _mean([math.exp(value) for value in end_log_p]) if end_log_p else None,
        _mean([not tokens for tokens in answers]),
    )


def telling(completions: Sequence[Completion]) -> int:
    """Which of the answers is furthest past a threshold that `warnings` speaks of."""

    def past(place: int) -> float:
        tokens = completions[place].tokens[:READ_TOKENS]
        if not tokens:
            return 1 / MUCH_EMPTY
        zeros, distinct = (count / len(tokens) for count in (tokens.count(0), len(set(tokens))))
        return max(zeros / MUCH_TOKEN_0, _share_of_run(tokens) / LONGEST_RUN, LEAST_DISTINCT / distinct)

    return max(range(len(completions)), key=past)


def longest_run(tokens: Sequence[int]) -> int:
    """How often one token stands in a row, at the most."""
    return max((sum(1 for _ in run) for _, run in groupby(tokens)), default=0)


def _share_of_run(tokens: Sequence[int]) -> float:
    """The longest run over the tokens; 0 where they are too few for a run to be a loop."""
    return longest_run(tokens) / len(tokens) if len(tokens) >= FEWEST_TOKENS else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def collapsed(found: Vitals) -> bool:
    """Whether nothing but token 0 is written any more: no update will bring such a model back."""
    return found.token_0 >= COLLAPSED


def warnings(found: Vitals, updates: int) -> list[str]:
    """What is wrong after so many updates, a sentence each; nothing for a healthy model."""
    said = []
    if found.empty >= MUCH_EMPTY:
        said.append(f"{found.empty:.0%} of the answers are empty: the end token comes first")
    if found.token_0 >= MUCH_TOKEN_0:
        said.append(f"{found.token_0:.0%} of what it writes is token 0: {TOKEN_0}")
    elif found.longest_run >= LONGEST_RUN:
        said.append(f"{found.longest_run:.0%} of an answer is one token in a row: the model is collapsing")
    elif found.distinct < LEAST_DISTINCT:
        said.append(f"answers repeat themselves ({found.distinct:.0%} different tokens): the model is collapsing")
    if found.answers >= FEWEST_ANSWERS and found.no_answer >= ALL_WITHOUT_NUMBER:
        said.append(f"none of {found.answers} answers holds a number")
    if found.could_stop >= FEWEST_TO_STOP and found.stopped * found.answers < LEAST_STOPPED * found.could_stop:
        said.append(f"{found.stopped:.0%} of the answers end by themselves: the end token is not learned")
    if found.end_probability is not None and updates >= ENOUGH_UPDATES and found.end_probability < LEAST_END:
        said.append(
            f"where a gold answer ends, the end token has a probability of {found.end_probability:.2g} after {updates} "
            "updates: it is not learned, and answers will not end by themselves"
        )
    return said


# --- the probe ------------------------------------------------------------------------------------------------


PROBE_ROWS = 4
PROBE_TOKENS = READ_TOKENS

ADVICE = "go on from an earlier checkpoint with a lower --learning-rate"


@dataclass(frozen=True, slots=True)
class Probe:
    """The rows to look at, always the same."""

    rows: Sequence[Example]
    end_ids: Collection[int]
    decode: Callable[[Sequence[int]], str]
    clock: Callable[[], float] = time.monotonic

    def __call__(self, update: int, live: Weights, deadline: Deadline = lambda: False) -> StepEvent | None:
        """The `probe` event of the weights as they are, with its warnings; None when `deadline` came true before.

        It is asked after each token and before each row that is scored. Raises CollapsedError when nothing but token 0
        is written (`damaged`), or the logits are not finite.
        """
        before = self.clock()
        try:
            found, completions, texts = self._look(live, checking(deadline))
        except TimeUp:
            return None
        except DivergedError as error:
            raise CollapsedError(f"probe: {error}", update=update) from error
        if collapsed(found):
            what = f"probe: every answer is token 0 and nothing else; {TOKEN_0}"
            raise CollapsedError(what, update=update, advice=ADVICE, damaged=True)
        seconds = self.clock() - before
        said = warnings(found, update)
        values = {"update": update, **found.values(), "seconds": seconds, "warnings": said, "texts": texts}
        if said and warnings(replace(found, end_probability=None), update):  # of the answers, not of the gold ones
            values["telling"] = telling(completions)
        return StepEvent("probe", values)

    def _look(self, live: Weights, check: Callable[..., None]) -> tuple[Vitals, list[Completion], list[str]]:
        prompts = [row.tokens[: row.num_prompt] for row in self.rows]
        sampling = Sampling(PROBE_TOKENS, len(prompts))
        answers: dict[int, Completion] = dict(live.generate(prompts, sampling, check))
        completions = [answers[index] for index in range(len(prompts))]
        texts = [self.decode(completion.tokens) for completion in completions]
        return vitals(completions, texts, self._ends(live, check)), completions, texts

    def _ends(self, live: Weights, check: Callable[..., None]) -> list[float]:
        """log p of the end token of each row, in nats. A template may write more behind it, which nobody reads."""
        ends = []
        for row in self.rows:  # by itself: a padded one would cost as much as the longest
            check()
            place = max(place for place, token in enumerate(row.tokens) if token in self.end_ids)
            ends.append(float(live.score(pad([row]))[0, place - 1]))
        return ends
