"""The problems of a run put to its model, whichever weights that holds: block by block, with a line for the person."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gsm8k_core.backend import Answering, Backend
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import write_json
from gsm8k_core.problems.prompts import encode
from gsm8k_core.rollouts.record import AGAIN, BACK, KEY, RECORDS, Rollout, read_key, read_records
from gsm8k_core.rollouts.round import Block, Round
from gsm8k_core.rollouts.schedule import FEWEST_RIGHT, FIRST_ANSWERS
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.scoring.verify import Mode, choose_mode
from gsm8k_core.tracking.terminal import Terminal, clock
from gsm8k_core.training.memory import answers_at_once
from gsm8k_core.types import Choice, Completion, DataError, OnToken, Problem, Sampling, UsageError, counted
from verbs.train.model import OpenModel
from verbs.train.start import Job

BEGUN = re.compile(r"[^<]*<<[^<>=\n]*=")  # of an answer, all before its first result
MOST_TRIED = 200
TOGETHER = 64  # answers decoded at once; half of it where memory is short, and so on


@dataclass(slots=True)
class Sampler:
    """Asks problems; `until` ends it, in seconds of the run."""

    job: Job
    terminal: Terminal
    elapsed: Callable[[], float]
    interrupted: Callable[[], bool]
    mode: Callable[[], Mode]
    together: int = TOGETHER
    calculator: bool = False
    until: float = 0.0
    later: Callable[[], float] | None = None  # asked once, when `until` has come: another end, if it is later
    problems: Mapping[str, Problem] = field(init=False)
    prompts: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.problems = {problem.id: problem for problem, _ in self.job.rows.asked}
        self.prompts = {problem.id: prompt for problem, prompt in self.job.rows.asked}

    @property
    def explained(self) -> list[Problem]:
        """The problems that come with their rationale, the first ones."""
        every, limit = list(self.problems.values()), self.job.config.rationales
        return every if limit < 0 else every[:limit]

    def cannot_calculate(self) -> str:
        """Nothing, or why the tokenizer cannot write a result where the rows have one."""
        begun = [BEGUN.match(problem.answer) for problem in self.explained]
        texts = [found[0] for found in begun if found][:MOST_TRIED]
        try:
            calculator = self._calculator()
            for tokens in encode(self.job.source.model.tokenizer, texts):
                calculator(tokens)
        except DataError as error:
            return str(error)
        return ""

    def choose_calculator(self) -> Choice:
        """On or off, as asked for or as the rows say. Raises UsageError where it is asked for and cannot be."""
        asked, why = self.job.config.calculator, ""
        if asked == "auto" and self.job.config.rollout_engine != "backend":
            return Choice("off", "the engine writes nothing that it has not drawn")
        marked = any("<<" in problem.answer for problem in self.explained)
        if asked == "on" or (asked == "auto" and marked):
            why = self.cannot_calculate()
        if asked == "on" and why:
            raise UsageError(f"--calculator on: {why}; leave it out, or --calculator off")
        if asked != "auto":
            return Choice(asked, f"--calculator {asked}")
        if why:
            return Choice("off", why)
        return Choice("on", "the rows have << >> marks") if marked else Choice("off", "no row has << >> marks")

    def halve(self, why: str) -> None:
        """Half as many answers at once from now on, said."""
        self.together = max(self.together // 2, 1)
        self.terminal.say(f"memory   {why}\n{'':9}going on with {counted(self.together, 'answer')} at once")

    def choose_together(self, model: OpenModel) -> Choice:
        """How many answers the memory has room for at once."""
        planned, dtype = model.plan, model.choices["dtype"].name
        if planned is None:
            return Choice(str(TOGETHER), "answers at once; of this model's sizes nothing is known")
        return answers_at_once(planned, self.job.config, dtype, self.job.longest_sampled, TOGETHER)

    def read(self, path: Path, done: bool = False) -> list[Rollout]:
        """The answers in a records.jsonl; see read_records."""
        return read_records(path, self.problems, self.decode, self.job.source.model.vocabulary, done)

    def read_closed(self, folder: Path, answered: int | None) -> list[Rollout]:
        """All answers of a round that is done, as it judged them: so many as run.json counts.

        Raises DataError where some are gone.
        """
        self.check_key(folder, None)
        answers = self.read(folder / RECORDS, done=True)
        if len(answers) != answered:
            of = "run.json counts none" if answered is None else f"of {answered:,}"
            raise DataError(f"{folder / RECORDS}: {len(answers):,} {of} answers are there; {BACK}")
        return answers

    def check_key(self, folder: Path, weights: str | None) -> None:
        """What decides the answers of a folder: noted before the first, and the same whenever they are read.

        `weights` is the hash of those that answer; None for a round that is done, whose weights may be gone.
        Raises DataError, and StorageError for a file that the system does not give.
        """
        config = self.job.config
        key = {
            "weights": weights,
            "data": self.job.hashes["data"],
            "tokenizer": self.job.hashes["tokenizer"],
            "prompt": self.job.source.model.rendering.name,
            "temperature": config.sample_temperature,
            "max_new_tokens": config.sample_max_new_tokens,
            "samples": config.samples,
            "seed": config.seed,
            "calculator": self.calculator,
        }
        known = read_key(folder / KEY, AGAIN if weights is not None else BACK)
        if known is None and weights is not None:
            write_json(folder / KEY, key)
        elif known is None:
            raise DataError(f"{folder / KEY} is gone; {BACK}")
        else:
            key["weights"] = known["weights"] if weights is None else weights
            other = next((name for name in key if known[name] != key[name]), None)
            if other:
                advice = BACK if weights is None else f"remove {folder} to sample that round again"
                raise DataError(f"{folder} holds answers of other {other}; {advice}")

    @property
    def num_first(self) -> int:
        """Answers that the first block of a round asks for."""
        return min(FIRST_ANSWERS, len(self.problems))

    def first_block(self, backend: Backend, path: Path) -> list[Rollout]:
        """The answers to the first block of round 1."""
        found = next(self.blocks(backend, 1, path, [], most=self.num_first), None)
        return found[1] if found else []

    def blocks(
        self, backend: Backend, number: int, path: Path, earlier: Sequence[Rollout], most: int | None = None
    ) -> Iterator[tuple[Block, list[Rollout]]]:
        """Round `number`: each block, and all answers of the round so far. What is in `path` already comes first.

        `most`: so many answers are looked at, at most; else all of the round.
        """
        config, known = self.job.config, self.read(path)
        sampled = Round(
            number,
            self.problems,
            path,
            partial(self.generate, backend),
            self.decode,
            config.samples,
            config.keep,
            config.seed,
            self.mode,
            self.elapsed,
            self._late,
        )
        began, tokens, right, waves = self.elapsed(), 0, 0, config.samples
        new, most = 0, most or len(self.problems) * waves  # answers of this process, and of the round
        with self.terminal.progress("answer", most) as steps:

            def heard(rollout: Rollout) -> None:
                nonlocal tokens, right, new
                new, tokens = new + 1, tokens + len(rollout.completion.tokens)
                right += rollout.verified(self.mode())
                now, done = self.elapsed(), len(sampled.answers)
                left = min((most - done) * (now - began) / new, max(self.until - now, 0.0))
                rate = tokens / max(now - began, 1e-9)
                steps.advance(f"{right:,} verified, {rate:,.0f} tokens/s, {clock(left)} to go at most", done=done)

            sampled.heard = heard
            before, wave = 0, 1  # answers of the waves before
            for block in sampled.sample(known, earlier):
                if block.wave != wave:
                    before, wave = len(sampled.answers) - len(block.answers), block.wave
                most = before + (waves - wave + 1) * block.of  # each later wave asks no more
                steps.resize(most)
                yield block, sampled.answers

    def generate(self, backend: Answering, block: Sequence[Ask], on_token: OnToken) -> Iterator[tuple[int, Completion]]:
        """Their answers, by the weights as they are now."""
        sampling = _sampling(self.job.config, self.together, self._calculator() if self.calculator else None)
        prompts = [self.prompts[ask.id] for ask in block]
        return backend.generate(prompts, sampling, on_token, [ask.key for ask in block])

    def _calculator(self) -> Calculator:
        return Calculator.of(self.job.source.model.tokenizer)

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text."""
        return self.job.source.model.rendering.text(tokens)

    def _late(self) -> bool:
        """Asked after each token."""
        if self.later is not None and self.elapsed() >= self.until:
            self.until, self.later = self.later(), None
        return self.interrupted() or self.elapsed() >= self.until


def choose_verify(config: TrainConfig, answers: Sequence[Rollout]) -> Choice:
    """By what answers are verified: as asked for, or as the right ones of these can be read."""
    if (asked := config.verify) != "auto":
        return Choice(asked, f"--verify {asked}")
    right = sum(each.verdict.gold_right for each in answers)
    if right < FEWEST_RIGHT:
        return Choice("steps", f"{counted(right, 'answer')} with the gold number, too few to say otherwise")
    return choose_mode(each.verdict for each in answers)


def _sampling(config: TrainConfig, together: int, calculator: Calculator | None) -> Sampling:
    """Top-k and top-p cut nothing: what is trained on is drawn from the model itself."""
    return Sampling(
        config.sample_max_new_tokens, together, config.sample_temperature, seed=config.seed, force=calculator
    )
