"""One round of sampling: wave after wave, block after block, until all is asked or the clock or a signal ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from gsm8k_core.rollouts.record import Appender, Decode, Rollout, judged
from gsm8k_core.rollouts.schedule import FIRST_ANSWERS
from gsm8k_core.rollouts.selection import Chain
from gsm8k_core.rollouts.wave import Ask, asks, blocks, shuffled, wave
from gsm8k_core.scoring.verify import Mode
from gsm8k_core.types import Completion, OnToken, Problem

BLOCK = 128  # answers decoded in one call: a kill costs no more than these, and few places are empty at its end
Generate = Callable[[Sequence[Ask], OnToken], Iterator[tuple[int, Completion]]]


class Ended(BaseException):
    """Raised by our own callback inside `generate`; no `except Exception` on the way out may swallow it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Answers that were asked for together; `whole`: all of them are there."""

    wave: int  # from 1
    of: int  # answers that its wave asks for
    answers: tuple[Rollout, ...]
    whole: bool


@dataclass(slots=True)
class Round:
    """Round `number` (from 1) over `problems`. `generate` gives the answers to some requests as they end."""

    number: int
    problems: Mapping[str, Problem]
    path: Path  # records.jsonl
    generate: Generate
    decode: Decode
    samples: int  # waves, at most
    keep: int
    seed: int
    mode: Callable[[], Mode]  # asked for each answer that is written, and from the second wave on
    elapsed: Callable[[], float]  # seconds of the run
    late: Callable[[], bool]  # asked after each token
    heard: Callable[[Rollout], None] = lambda rollout: None  # of each new answer
    answers: list[Rollout] = field(default_factory=list)  # so far

    def sample(self, known: Sequence[Rollout], earlier: Sequence[Rollout]) -> Iterator[Block]:
        """Give block after block; `known` are the answers of this round that are on the disk, `earlier` older rounds'.

        A block that is there in part is asked for again, and all that was written behind it.
        """
        there = {rollout.ask: rollout for rollout in known}
        ordered = shuffled(list(self.problems), self.seed, self.number)
        appender: Appender | None = None
        try:
            for number in range(1, self.samples + 1):
                names = ordered if number == 1 else self._short(ordered, number, earlier)
                wanted = asks(names, number, self.number, self.samples)
                for block in self._blocks(wanted, number):
                    if appender is None and all(ask in there for ask in block):
                        answers, whole = self._in_file_order(block, known), True
                        self.answers += answers
                    else:
                        if appender is None:
                            appender = Appender(self.path, self.answers, self.mode)
                        answers, whole = self._ask(block, appender)
                    yield Block(number, len(wanted), tuple(answers), whole)
                    if not whole:
                        return
            if appender is None:  # all of it was there, and a torn line may follow
                appender = Appender(self.path, self.answers, self.mode)
        finally:
            if appender is not None:
                appender.close()

    def _short(self, ordered: Sequence[str], number: int, earlier: Sequence[Rollout]) -> list[str]:
        """The problems of a later wave."""
        mode, chains, verified = self.mode(), dict[str, set[Chain]](), dict[str, int]()
        for each in [*earlier, *self.answers]:
            if each.verified(mode):
                name = each.problem.id
                chains.setdefault(name, set()).add(each.chain)
                verified[name] = verified.get(name, 0) + 1
        return wave(ordered, number, {name: len(found) for name, found in chains.items()}, verified, self.keep)

    @staticmethod
    def in_whole_blocks(count: int) -> int:
        """Of so many answers of wave 1, in the order in which they ended, those that lie in whole blocks."""
        return FIRST_ANSWERS + (count - FIRST_ANSWERS) // BLOCK * BLOCK if count >= FIRST_ANSWERS else 0

    @staticmethod
    def _blocks(wanted: Sequence[Ask], number: int) -> Iterator[list[Ask]]:
        """The first block of a round is smaller: it says how fast the model is, and how often it is right."""
        first = FIRST_ANSWERS if number == 1 else 0
        if wanted[:first]:
            yield list(wanted[:first])
        yield from blocks(wanted[first:], BLOCK)

    @staticmethod
    def _in_file_order(block: Sequence[Ask], known: Sequence[Rollout]) -> list[Rollout]:
        wanted = set(block)
        return [rollout for rollout in known if rollout.ask in wanted]

    def _ask(self, block: Sequence[Ask], appender: Appender) -> tuple[list[Rollout], bool]:
        """Its answers, written as they end; whether they are all there."""
        answers: list[Rollout] = []

        def check(*unused: int) -> None:
            if self.late():
                raise Ended

        try:
            check()
            completions = self.generate(block, check)
            # A generator left open would keep its cache.
            with closing(completions):  # type: ignore[type-var]
                for index, completion in completions:
                    ask = block[index]
                    rollout = judged(self.problems[ask.id], ask.sample, completion, self.decode, self.elapsed())
                    appender(rollout)
                    answers.append(rollout)
                    self.answers.append(rollout)
                    self.heard(rollout)
        except Ended:
            pass
        return answers, len(answers) == len(block)
