"""`train --recipe rft`: rounds of sampling and training, down to the job of the last training, which is then as any.

Between the base's guard and that one lie the phases of gsm8k_core/rollouts/schedule.py. Each is told to run.json when
it begins, with its end, and when it is done; what it made is on the disk before that. So a run that goes on repeats no
more than a block of answers or the updates since a checkpoint, and comes to the same rows. A training in between is a
Segment of its own, in the folder of its round; its checkpoint goes when the answers of its weights are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import file_hash, read_json, remove_folder, write_bytes, write_json
from gsm8k_core.problems.batching import rows_hash
from gsm8k_core.problems.prompts import PROMPT_NAME, decode, encode
from gsm8k_core.rollouts.progress import BASE, PROGRESS, ROUNDS, Progress, Timed, folder_of
from gsm8k_core.rollouts.record import KEY, RECORDS, ROUND, SELECTED, Rollout, read_records
from gsm8k_core.rollouts.round import Block, Round
from gsm8k_core.rollouts.schedule import (
    Phase,
    cannot_pay,
    end_of,
    longer_sampling,
    needs_warm_start,
    rounds_that_fit,
    tokens_a_row,
)
from gsm8k_core.rollouts.selection import Candidate, Chain, Mixed, choose, mix, own_row
from gsm8k_core.rollouts.tally import Tally, tally
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.scoring.stats import percent
from gsm8k_core.scoring.verify import Mode, choose_mode, verify
from gsm8k_core.tracking.feed import Trackers
from gsm8k_core.tracking.terminal import MetricsFile, clock, counted
from gsm8k_core.training.checkpoints import Checkpoint, newest
from gsm8k_core.training.pilot import STOP_INTERRUPTED
from gsm8k_core.training.plan import adjustments_of
from gsm8k_core.training.runs import Run
from gsm8k_core.types import (
    Choice,
    Completion,
    DataError,
    Example,
    OnToken,
    Orders,
    OutOfMemoryError,
    Problem,
    Sampling,
    StepEvent,
    UpdateStats,
)
from verbs import Context, as_json
from verbs.train.model import OpenModel, open_model, rehearse
from verbs.train.segment import Segment
from verbs.train.start import Job, newest_of

TOGETHER = 64  # answers decoded at once; half of it where memory is short, and so on
SPARE = 1.25  # times what the training of a round's rows is thought to take
FIRST = "first"  # the weights that the run began with


class Interrupted(BaseException):
    """A signal came between two updates of no training: the run is as it stands on the disk."""


@dataclass(frozen=True, slots=True)
class _Frozen:
    """A pilot of no update: weights are set, and nothing is trained."""

    def rate(self, update: int) -> float:
        return 0.0

    def after(self, stats: UpdateStats, live: Any) -> Orders:
        raise AssertionError("there is no update")


@dataclass(slots=True)
class Rounds:
    """All phases before the last training."""

    job: Job
    model: OpenModel
    run: Run
    context: Context
    trackers: Trackers
    interrupted: Callable[[], bool]
    weights: str = FIRST  # which the model holds now
    answers: dict[int, list[Rollout]] = field(default_factory=dict)  # of each round that was sampled
    progress: Progress = field(default_factory=Progress)
    after: float = 0.0  # seconds that are kept for what follows the phases: the guard's answers, and the save
    until: float = 0.0  # when the sampling at hand ends, in seconds of the run
    pace: float = 0.0  # seconds that a padded token of an update takes, by the newest rehearsal
    chains: dict[str, Chain] = field(default_factory=dict)  # of the human answers, by problem

    @property
    def config(self) -> TrainConfig:
        """The run's settings."""
        return self.job.config

    def elapsed(self) -> float:
        """Seconds of the whole run."""
        return self.job.seconds + self.context.elapsed()

    def last(self) -> Segment:
        """Do every phase, and give the last training. Raises Interrupted."""
        self.progress = Progress.from_json(self.run.manifest.get(PROGRESS))
        guard = Segment(self.job, self.model, self.run, self.context, self.trackers, self.interrupted).guard_now()
        self.after, self.pace = SPARE * guard.seconds, self.model.rehearsed
        if self.context.link.killed_by and self.progress.phase and "train" not in self.progress.phase.name:
            self._record(replace(self.progress, together=max(self._together // 2, 1)))
        if self.config.rounds != "auto":
            self._decide("rounds", Choice(self.config.rounds, f"--rounds {self.config.rounds}"))
        if self.config.verify != "auto":
            self._decide("verify", Choice(self.config.verify, f"--verify {self.config.verify}"))
        self._decide_calculator()
        self._decide_warm_start()
        if self._warm and "warm" not in self.progress.done:
            self._train(Phase("warm", 0), self.job.rows.examples)
        number = 1
        while number == 1 or number <= self._rounds:
            self._sample(number)
            if number == 1 and not self._pays():
                return self._segment(self.job.rows.examples, warm=True)
            rows = self._rows()
            if number < self._rounds and f"train-{number}" not in self.progress.done:
                self._train(Phase("train", number), rows)
            number += 1
        return self._segment(rows)

    # --- what is decided --------------------------------------------------------------------------------------

    def _decide(self, name: str, choice: Choice) -> str:
        """Note a decision, and say it; one that was taken before stays."""
        if (known := self.progress.decided(name)) is not None:
            return known
        self._record(self.progress.with_decision(name, choice))
        self.context.terminal.say(f"{name:<8} {choice.name}: {choice.reason}")
        return choice.name

    def _record(self, progress: Progress) -> None:
        self.progress = replace(progress, elapsed=self.elapsed())
        self.run.record(**{PROGRESS: self.progress.as_json()})

    @property
    def _warm(self) -> bool:
        return self.progress.decided("warm") == "on"

    @property
    def _rounds(self) -> int:
        return int(self.progress.decided("rounds") or 1)

    @property
    def _mode(self) -> Mode:
        return "gold" if self.progress.decided("verify") == "gold" else "steps"

    @property
    def _mix(self) -> Mixed:
        if self.config.mix != "auto":
            return self.config.mix
        return "both" if self._warm else "own-first"

    def _decide_calculator(self) -> None:
        asked, marked = self.config.calculator, any("<<" in problem.answer for problem in self._explained.values())
        reason = f"--calculator {asked}"
        if asked == "auto":
            asked, reason = ("on", "the rows have << >> marks") if marked else ("off", "no row has << >> marks")
            try:
                self._calculator()
            except DataError as error:
                asked, reason = "off", str(error)
        self._decide("calculator", Choice(asked, reason))

    def _decide_warm_start(self) -> None:
        asked = self.config.warm_start
        if asked != "auto":
            self._decide("warm", Choice(asked, f"--warm-start {asked}"))
        elif self.progress.decided("warm") is None:
            answers = self._base_answers()
            right, tried = sum(each.verified(self._mode) for each in answers), len(answers)
            warm = needs_warm_start(right, tried)
            said = f"{right} of the base's first {counted(tried, 'answer')} are verified"
            how = "human answers first, for a quarter of the time" if warm else "it can learn from its own answers"
            self._decide("warm", Choice("on" if warm else "off", f"{said}; {how}"))
        base, first, timed = self.run.rollouts / BASE, self._folder(1), self.progress.phase
        if not self._warm and base.is_dir() and not first.exists():  # they are the first answers of round 1
            base.rename(first)
            if timed is not None and timed.name == BASE:
                self._record(replace(self.progress, phase=replace(timed, name="sample-1")))

    def _decide_rounds(self, answers: Sequence[Rollout], began: float) -> None:
        each = (answers[-1].seconds - began) / len(answers) if answers else 0.0
        left = self._end - began
        number = rounds_that_fit(left, each, len(self.job.rows.asked)) if answers else 1
        self._decide("rounds", Choice(str(number), f"an answer takes {each:.2f} s, and there are {clock(left)}"))

    def _decide_mode(self, answers: Sequence[Rollout]) -> None:
        self._decide("verify", choose_mode(each.verdict for each in answers))

    def _pays(self) -> bool:
        """Whether the warm model answers well enough; decided once."""
        if not self._warm:
            return True
        first = self.answers[1][:64]
        right = sum(each.verified(self._mode) for each in first)
        each = tokens_a_row([len(one.completion.tokens) for one in first], right)
        cost = f"a kept row costs {each:,.0f} tokens" if each else "no answer could be kept"
        said = f"{right} of the first {counted(len(first), 'answer')} are verified, so {cost}"
        if cannot_pay(right, len(first)):
            return self._decide("pays", Choice("no", f"rft cannot pay here: {said}; going on with sft")) == "yes"
        return self._decide("pays", Choice("yes", said)) == "yes"

    # --- time -------------------------------------------------------------------------------------------------

    @property
    def _end(self) -> float:
        """When the last training has to be done, in seconds of the run."""
        return self.config.budget_seconds - self.after

    def _begin(self, phase: Phase, name: str = "", began: float | None = None) -> Timed:
        """The phase's time: as it was recorded, where the run has the same --max-time."""
        name, now, budget = name or phase.name, self.elapsed(), self.config.budget_seconds
        known = self.progress.phase
        if known is not None and known.name == name and known.budget == budget:
            return known
        end = end_of(phase, max(self._rounds, phase.round), self._warm, now, self._end)
        timed = Timed(name, now if began is None else began, end, budget)
        self._record(replace(self.progress, phase=timed))
        return timed

    # --- sampling ---------------------------------------------------------------------------------------------

    @property
    def _problems(self) -> dict[str, Problem]:
        return {problem.id: problem for problem, _ in self.job.rows.asked}

    @property
    def _explained(self) -> dict[str, Problem]:
        """The problems that come with their rationale."""
        limit = self.config.rationales
        every = self._problems
        return every if limit < 0 else dict(list(every.items())[:limit])

    def _folder(self, number: int) -> Path:
        return self.run.rollouts / folder_of(f"sample-{number}")

    def _decode(self, tokens: Sequence[int]) -> str:
        return decode(self.job.source.model.tokenizer, tokens)

    def _base_answers(self) -> list[Rollout]:
        """The base's answers to the first block of round 1."""
        timed = self._begin(Phase("sample", 1), BASE)
        path, self.until = self.run.phase(BASE).folder / RECORDS, timed.end
        self._check_key(path.parent, FIRST)
        block = next(self._blocks(self._round(1, path), self._read(path), []), None)
        if self.interrupted():
            raise Interrupted
        answers = list(block.answers) if block else []
        self._decide_mode(answers)
        return answers

    def _sample(self, number: int) -> None:
        """Round `number`, to its end; its answers, from the disk where they are there."""
        folder, name = self._folder(number), f"sample-{number}"
        weights = FIRST if number == 1 and not self._warm else "warm" if number == 1 else f"train-{number - 1}"
        if name in self.progress.done:
            self.answers[number] = self._read(folder / RECORDS)
            return
        self.run.phase(folder.name)
        self._hold_weights(weights)
        self._check_key(folder, weights)
        timed = self._begin(Phase("sample", number))
        answers = self._answers(number, folder, timed)
        if self.interrupted():
            raise Interrupted
        self.answers[number] = answers
        self._close(number, folder, timed)
        if weights != FIRST and not (weights == "warm" and not self._pays()):
            remove_folder(self.run.phase(folder_of(weights)).checkpoints)

    def _answers(self, number: int, folder: Path, timed: Timed) -> list[Rollout]:
        """Sample; again with half as many at once where memory runs out."""
        earlier = [each for known in self.answers.values() for each in known]
        while True:
            sampled, self.until = self._round(number, folder / RECORDS), timed.end
            try:
                for block in self._blocks(sampled, self._read(folder / RECORDS), earlier):
                    if self.interrupted():
                        break
                    if self.progress.decided("verify") is None:
                        self._decide_mode(block.answers)
                    if self.progress.decided("rounds") is None:
                        self._decide_rounds(block.answers, timed.began)
                        timed = self._plan_again(timed, number)
                    self.answers[number] = sampled.answers
                    self.until = self._sampling_end(number, timed)
                return sampled.answers
            except OutOfMemoryError as error:
                fewer = self._together // 2
                if not fewer:
                    raise
                self.context.terminal.say(f"memory   {error}\n{'':9}going on with {fewer} answers at once")
                self._record(replace(self.progress, together=fewer))

    def _plan_again(self, timed: Timed, number: int) -> Timed:
        """The end of a first sampling that began when the number of rounds was not known."""
        end = end_of(Phase("sample", number), self._rounds, self._warm, timed.began, self._end)
        timed = replace(timed, end=end)
        self._record(replace(self.progress, phase=timed))
        return timed

    def _sampling_end(self, number: int, timed: Timed) -> float:
        """When a round's sampling ends: of the last one later, where the training of its rows leaves time for it."""
        if number < self._rounds or not self.pace:
            return timed.end
        tokens = sum(len(row.tokens) for row in self._rows())
        return longer_sampling(timed.end, self._end, SPARE * self.config.num_epochs * tokens * self.pace)

    def _late(self) -> bool:
        """Asked after each token."""
        return self.interrupted() or self.elapsed() >= self.until

    @property
    def _together(self) -> int:
        return self.progress.together or TOGETHER

    def _round(self, number: int, path: Path) -> Round:
        config = self.config
        return Round(
            number,
            self._problems,
            path,
            self._generate,
            self._decode,
            config.samples,
            config.keep,
            config.seed,
            lambda: self._mode,
            self.elapsed,
            self._late,
        )

    def _generate(self, block: Sequence[Ask], on_token: OnToken) -> Iterator[tuple[int, Completion]]:
        config, prompts = self.config, {problem.id: prompt for problem, prompt in self.job.rows.asked}
        sampling = Sampling(
            config.sample_max_new_tokens,
            self._together,
            config.sample_temperature,
            seed=config.seed,
            force=self._calculator() if self.progress.decided("calculator") == "on" else None,
        )
        wanted = [prompts[ask.id] for ask in block]
        return self.model.backend.generate(wanted, sampling, on_token, [ask.key for ask in block])

    def _calculator(self) -> Calculator:
        tokenizer = self.job.source.model.tokenizer
        return Calculator(partial(encode, tokenizer), partial(decode, tokenizer))

    def _blocks(self, sampled: Round, known: Sequence[Rollout], earlier: Sequence[Rollout]) -> Iterator[Block]:
        """The blocks of a round, with a line for the person while they come."""
        began, tokens, right = self.elapsed(), 0, 0
        count, waves = len(sampled.problems), sampled.samples
        with self.context.terminal.progress("answer", count * waves) as steps:

            def heard(rollout: Rollout) -> None:
                nonlocal tokens, right
                tokens += len(rollout.completion.tokens)
                right += rollout.verified(self._mode)
                rate = tokens / max(self.elapsed() - began, 1e-9)
                steps.advance(f"{right} verified, {rate:,.0f} tokens/s", done=len(sampled.answers))

            sampled.heard = heard
            before, wave = 0, 1  # answers of the waves before
            for block in sampled.sample(known, earlier):
                if block.wave != wave:
                    before, wave = len(sampled.answers) - len(block.answers), block.wave
                steps.resize(before + (waves - wave + 1) * block.of)
                yield block

    def _read(self, path: Path) -> list[Rollout]:
        return read_records(path, self._problems, self._decode, self.job.source.model.vocabulary)

    def _check_key(self, folder: Path, weights: str) -> None:
        """What decides the answers of a folder: noted with the first, and the same whenever they are read."""
        config = self.config
        key = {
            "weights": self._weights_hash(weights),
            "data": self.job.hashes["data"],
            "tokenizer": self.job.hashes["tokenizer"],
            "prompt": PROMPT_NAME,
            "temperature": config.sample_temperature,
            "max_new_tokens": config.sample_max_new_tokens,
            "samples": config.samples,
            "seed": config.seed,
            "calculator": self.progress.decided("calculator"),
        }
        path = folder / KEY
        if not path.exists():
            write_json(path, key)
        elif (known := read_json(path)) != key:
            name = next(name for name in [*key, *known] if known.get(name) != key.get(name))
            raise DataError(f"{folder} holds answers of other {name}; remove {folder} to sample that round again")

    def _weights_hash(self, weights: str) -> str:
        if weights == FIRST:
            return self.job.hashes["model"]
        checkpoint = self._checkpoint(weights)
        return "+".join(file_hash(checkpoint.folder / name) for name in checkpoint.weights)

    # --- what is kept -----------------------------------------------------------------------------------------

    def _human_chains(self) -> dict[str, Chain]:
        if not self.chains:
            for name, problem in self._explained.items():
                self.chains[name] = verify(problem.answer, "stop", problem.answer).chain
        return self.chains

    def _kept(self) -> dict[str, list[Rollout]]:
        """The answers of all rounds so far that are kept, by problem."""
        mode, limit = self._mode, self.config.max_length
        prompts = {problem.id: len(prompt) for problem, prompt in self.job.rows.asked}
        human = self._human_chains() if self._mix == "both" else {}
        found: dict[str, list[Rollout]] = {}
        for number in sorted(self.answers):
            for each in sorted(self.answers[number], key=lambda one: one.sample):
                fits = prompts[each.problem.id] + len(each.completion.tokens) + 1 <= limit
                if each.verified(mode) and fits:
                    found.setdefault(each.problem.id, []).append(each)
        kept = {}
        for name, verified in found.items():
            by_sample = {each.sample: each for each in verified}
            candidates = [Candidate(name, each.sample, each.chain, each.completion) for each in verified]
            known = [human[name]] if name in human else []
            kept[name] = [by_sample[one.sample] for one in choose(candidates, self.config.keep, known)]
        return kept

    def _rows(self) -> list[Example]:
        """The training rows of all that was kept so far."""
        prompts = {problem.id: prompt for problem, prompt in self.job.rows.asked}
        own = {
            name: [own_row(Candidate(name, each.sample, each.chain, each.completion), prompts[name]) for each in kept]
            for name, kept in self._kept().items()
        }
        human = {example.id: example for example in self.job.rows.examples}
        rows = mix(self._mix, list(prompts), own, human)
        return rows or self.job.rows.examples

    def _close(self, number: int, folder: Path, timed: Timed) -> None:
        """The round's counts and its kept answers on the disk; then it is done."""
        kept = self._kept()
        answers = self.answers[number]
        first = (number - 1) * self.config.samples
        ours = [each for found in kept.values() for each in found if each.sample // self.config.samples == number - 1]
        whole = self._whole_first_wave(answers, first)
        counts = tally(number, answers, whole, ours, self._human_chains(), self._mode, self.elapsed() - timed.began)
        lines = [
            json.dumps({"id": name, "sample": each.sample, "chain": list(each.chain), "completion": each.text})
            for name, found in kept.items()
            for each in found
        ]
        write_bytes(folder / SELECTED, "".join(f"{line}\n" for line in lines).encode())
        write_json(folder / ROUND, counts.as_json())
        others = [each for each in self.run.manifest.get(ROUNDS, ()) if each["round"] != number]
        self.run.record(**{ROUNDS: [*others, counts.as_json()]})
        self._record(self.progress.with_done(f"sample-{number}"))
        self._say_round(counts)

    def _whole_first_wave(self, answers: Sequence[Rollout], sample: int) -> list[Rollout]:
        """The answers of wave 1 that lie in whole blocks."""
        first = [each for each in answers if each.sample == sample]
        every = len(first) == len(self.job.rows.asked)
        return first if every else first[: Round.in_whole_blocks(len(first))]

    def _say_round(self, counts: Tally) -> None:
        rate = "nothing was asked to its end"
        if counts.rate is not None and counts.interval is not None:
            low, high = counts.interval
            rate = f"solves {percent(counts.rate)} [{100 * low:.1f}, {100 * high:.1f}]"
        self.context.terminal.say(
            f"round {counts.round}  {counted(counts.answered, 'answer')} to {counted(counts.asked, 'problem')}: "
            f"{counts.verified:,} verified, {counts.kept:,} kept, {counts.new_chains:,} with equations of their own; "
            f"{counts.wrong_step:,} right with a wrong step; {rate}; {counted(counts.tokens, 'token')} in "
            f"{clock(counts.seconds)}"
        )
        metrics = MetricsFile(self.run.metrics)
        event = StepEvent("round", {**counts.as_json(), "elapsed": self.elapsed()})
        try:
            metrics(event)
        finally:
            metrics.close()

    # --- training ---------------------------------------------------------------------------------------------

    def _checkpoint(self, name: str) -> Checkpoint:
        """The weights that a training in between ended with."""
        folder = self.run.phase(folder_of(name)).checkpoints
        checkpoint = newest(folder, self.context.terminal.say)
        wanted = self.progress.updates.get(name)
        if checkpoint is None or checkpoint.update != wanted:
            raise DataError(f"{folder} has no whole checkpoint of update {wanted}; bring it back, or start a new run")
        return checkpoint

    def _hold_weights(self, name: str) -> None:
        """Let the model hold these weights, whatever it held before."""
        if name == self.weights:
            return
        self._open(self.job)
        if name != FIRST:
            self.model.backend.train(iter(()), self._trained_config(), _Frozen(), self._checkpoint(name).state())
        self.weights = name

    def _trained_config(self) -> TrainConfig:
        return self._plain_segment(self.job, self.run).trained_config()

    def _plain_segment(self, job: Job, run: Run) -> Segment:
        return Segment(job, self.model, run, self.context, self.trackers, self.interrupted)

    def _open(self, job: Job) -> None:
        """The model again, with the weights that the run began with."""
        self.model.backend.close()
        dtype = {"dtype": self.model.choices["dtype"].name}
        self.model = open_model(replace(job, config=job.config.model_copy(update=dtype)), self.context)
        self.weights = FIRST

    def _job(self, rows: Sequence[Example], run: Run, config: TrainConfig, unfinished: bool) -> Job:
        """A training on `rows` in the folder of `run`, from its newest checkpoint where it has one."""
        hashes = {**self.job.hashes, "trained": rows_hash(rows)}
        checkpoint = None
        if run.checkpoints.is_dir():
            checkpoint = newest_of(run, config, hashes, unfinished, self.context)
        return replace(
            self.job,
            config=config,
            rows=replace(self.job.rows, examples=list(rows), longest_own=0),
            hashes=hashes,
            run=run,
            checkpoint=checkpoint,
            adjustments=tuple(adjustments_of(run.manifest)),
            unfinished=unfinished,
        )

    def _train(self, phase: Phase, rows: Sequence[Example]) -> None:
        """A training whose model only samples; its last checkpoint is kept for that."""
        timed, run = self._begin(phase), self.run.phase(folder_of(phase.name))
        values = {"max_time": f"{timed.end:.3f}", "guard_problems": 0, "eval_steps": 0}
        job = self._job(rows, run, self.config.model_copy(update=values), unfinished=True)
        self.context.terminal.say(f"\n{phase.name:<8} {counted(len(rows), 'row')}, until {clock(timed.end)} of the run")
        if self.weights != FIRST or job.widest != self.job.widest:
            self._open(job)
        rehearse(job, self.model, self.elapsed, self.context.terminal)
        self.pace = self.model.rehearsed or self.pace
        segment = self._plain_segment(job, run)
        outcome, pilot = segment.train_on()
        self.model, self.weights = segment.model, phase.name
        if outcome.reason == STOP_INTERRUPTED:
            raise Interrupted
        updates = len(pilot.losses)
        segment.keep_last(updates)
        self._record(self.progress.with_done(phase.name, updates))

    def _segment(self, rows: Sequence[Example], warm: bool = False) -> Segment:
        """The last training; `warm`: the warm start itself goes on."""
        name = f"train-{self._rounds}"
        if self.progress.phase is None or self.progress.phase.name != name:
            self._begin(Phase("train", self._rounds))
        unfinished = self.job.unfinished and self.run.checkpoints.is_dir()
        job = self._job(rows, self.run, self.config, unfinished)
        if warm and job.checkpoint is None:
            job = replace(job, checkpoint=self._with_guard(self._checkpoint("warm")))
        said = f"{counted(len(rows), 'row')}: {self._mix}" if not warm else "the human answers, from the warm start on"
        self.context.terminal.say(f"\ntrain    {said}")
        self._open(job)
        rehearse(job, self.model, self.elapsed, self.context.terminal)
        self.run.record(choices=as_json(self.model.choices), trained={"rows": len(rows), "sha256": rows_hash(rows)})
        return self._plain_segment(job, self.run)

    def _with_guard(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint of the warm start, with what the base showed before it."""
        facts: Mapping[str, Any] = {**checkpoint.facts, "guard": self.run.manifest.get("guard")}
        return replace(checkpoint, facts=facts)
