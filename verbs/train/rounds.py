"""`train --recipe rft`: rounds of sampling and training, down to the last training, which is then as any other.

Between the base's guard and that one lie the phases of gsm8k_core/rollouts/schedule.py. Each is told to run.json when
it begins, with its end, and when it is done; what it made is on the disk before that. So a run that goes on repeats no
more than a block of answers, or the updates since a checkpoint, and comes to the same rows. A training in between is a
Segment of its own, in the folder of its round; its checkpoint goes when the answers of its weights are there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import file_hash, refuse_links, remove_folder, write_bytes, write_json
from gsm8k_core.problems.batching import rows_hash
from gsm8k_core.rollouts.progress import (
    BASE,
    OPEN,
    PROGRESS,
    ROUNDS,
    Progress,
    Timed,
    folder_of,
    round_folders,
)
from gsm8k_core.rollouts.record import RECORDS, ROUND, SELECTED, Appender, Rollout, read_selected
from gsm8k_core.rollouts.round import Round
from gsm8k_core.rollouts.schedule import (
    FEWEST_RIGHT,
    FIRST_ANSWERS,
    Phase,
    cannot_pay,
    end_of,
    end_of_first_block,
    longer_sampling,
    needs_warm_start,
    rounds_that_fit,
    tokens_a_row,
)
from gsm8k_core.rollouts.selection import Chain, Mixed, as_lines, kept_of, mix, own_row
from gsm8k_core.rollouts.tally import Tally, tally
from gsm8k_core.scoring.verify import Mode, verify
from gsm8k_core.tracking.feed import Trackers
from gsm8k_core.tracking.terminal import MetricsFile, clock
from gsm8k_core.training.checkpoints import Checkpoint, newest, remove_all
from gsm8k_core.training.metrics import cut_metrics
from gsm8k_core.training.pilot import STOP_INTERRUPTED
from gsm8k_core.training.plan import ADJUSTMENTS, adjustments_of, dtype_of
from gsm8k_core.training.runs import Run
from gsm8k_core.types import (
    Choice,
    DataError,
    DeviceLostError,
    Example,
    Orders,
    OutOfMemoryError,
    StepEvent,
    UpdateStats,
    counted,
)
from verbs import Context, as_json
from verbs.train.model import NoTimeError, OpenModel, open_model, rehearse
from verbs.train.sampler import TOGETHER, Sampler, choose_verify
from verbs.train.segment import Segment
from verbs.train.signals import Interrupted
from verbs.train.start import Job, newest_of_phase
from verbs.train.words import round_line

SPARE = 1.25  # times what the training of a round's rows, or the guard's answers, are thought to take
FIRST = "first"  # the weights that the run began with


@dataclass(frozen=True, slots=True)
class _Unasked:
    """The pilot of no update: weights are set, and nothing is trained."""

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
    weights: str = FIRST  # which the model holds now: those, or a training phase's name
    answers: dict[int, list[Rollout]] = field(default_factory=dict)  # of each round
    kept: dict[int, dict[str, list[Rollout]]] = field(default_factory=dict)  # when a round was done: of all until then
    after: float = 0.0  # seconds that are kept for what follows the phases
    reserve: float = 0.0  # seconds of the save, and of the end of the run
    opening: float = 0.0  # seconds that it takes to open the model for a training, and to rehearse it
    update: float = 0.0  # seconds that one update is thought to take
    pace: float = 0.0  # seconds that a padded token of an update takes, by the newest rehearsal
    chains: dict[str, Chain] = field(default_factory=dict)  # of the human answers, by problem
    progress: Progress = field(init=False)
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress.from_json(self.run.manifest.get(PROGRESS))
        self.sampler = Sampler(
            self.job, self.context.terminal, self.elapsed, self.interrupted, lambda: self.progress.mode
        )

    @property
    def config(self) -> TrainConfig:
        """The run's settings."""
        return self.job.config

    def elapsed(self) -> float:
        """Seconds of the whole run."""
        return self.job.seconds + self.context.elapsed()

    def last(self) -> Segment:
        """Do every phase, and give the last training. Raises Interrupted."""
        last = self._segment_of(self.job, self.run)
        guard, self.reserve = last.guard_now(), last.reserve_now()
        self.after, self.pace, self.opening = SPARE * guard.seconds, last.model.rehearsed, last.model.seconds
        self.update = last.model.update_seconds
        if last.model is not self.model:  # the base's answers had no room in float16: all that follows is in float32
            now, self.model = last.job, last.model
            self.job = replace(self.job, config=now.config, dtype=now.dtype, run=now.run, adjustments=now.adjustments)
            self._open(self.job)  # with a plan of its memory: a recovery makes none
        self._take_up()
        self._decide_what_is_asked_for()
        self._decide_warm_start()
        if self._warm:
            self._train(Phase("warm", 0), self.job.rows.examples)
        number = 1
        while True:
            self._sample(number)
            if number == 1 and not self._pays() and not (self._is_open and self.config.mix == "own"):
                return self._last(self.job.rows.examples, from_warm=True)
            if number >= self._rounds:
                return self._last(self._rows())
            self._train(Phase("train", number), self._rows())
            if not self.progress.updates[f"train-{number}"]:  # no time: nothing new could answer
                return self._last(self._rows())
            number += 1

    def _take_up(self) -> None:
        """Do anew what a shorter --max-time left open; what followed goes.

        That it is to go is noted in one write with what is known then: after a kill in between, the rest of it goes
        whatever the --max-time is, and nothing that is gone is asked for.
        """
        again = self.progress.taken_up(self.config.budget_seconds)
        if not again.clearing:
            return
        rounds = round_folders(self.run.rollouts)
        refuse_links(self.run.rollouts, *rounds, self.run.checkpoints, self.run.best)
        if again is not self.progress:
            self.context.terminal.say(
                "rft      whether it pays was left open: this --max-time finds out, and what followed goes "
                "(its rounds, checkpoints/ and best/); model/ stays until there is a new one"
            )
            changes = self.run.manifest.get(ADJUSTMENTS, ())
            adjusted = [each for each in changes if each["what"] != "rate"]  # that was of updates that go
            nothing = {"best": None, "model_update": None, "model_save": None}  # the new training has none yet
            self._record(again, **{ROUNDS: [], ADJUSTMENTS: adjusted}, **nothing)
        for folder in rounds:
            remove_folder(folder)
        remove_all(self.run.checkpoints)
        if self.run.best.is_dir():
            remove_folder(self.run.best)
        cut_metrics(self.run.metrics, 0)
        self._record(replace(self.progress, clearing=False))

    # --- what is decided --------------------------------------------------------------------------------------

    def _decide(self, name: str, choice: Choice, **changed: Any) -> None:
        """Note a decision, and say it; one that was taken before stays. `changed`: what else of Progress."""
        if self.progress.decided(name) is None:
            self._record(replace(self.progress.with_decision(name, choice), **changed))
            self.context.terminal.say(f"{name:<8} {choice.name}: {choice.reason}")

    def _record(self, progress: Progress, **more: Any) -> None:
        self.progress = replace(progress, elapsed=self.elapsed())
        self.run.record(**{PROGRESS: self.progress.as_json()}, **more)

    @property
    def _warm(self) -> bool:
        return self.progress.decided("warm") == "on"

    @property
    def _rounds(self) -> int:
        return int(self.progress.decided("rounds") or 1)

    @property
    def _mix(self) -> Mixed:
        if self.config.mix != "auto":
            return self.config.mix
        return "both" if self._warm else "own-first"

    def _decide_what_is_asked_for(self) -> None:
        """What the flags say, and the calculator, which the rows decide; after a kill, how many answers at once."""
        config, progress = self.config, self.progress
        flags = ("rounds", "rounds", config.rounds), ("warm", "warm-start", config.warm_start)
        for name, flag, asked in (*flags, ("verify", "verify", config.verify)):
            if asked != "auto":
                self._decide(name, Choice(asked, f"--{flag} {asked}"))
        self._decide("calculator", self.sampler.choose_calculator())
        self.sampler.calculator = self.progress.decided("calculator") == "on"
        self._decide("together", self.sampler.choose_together(self.model))
        self.sampler.together = progress.together or int(self.progress.decided("together") or TOGETHER)
        if self.context.link.killed_by and progress.sampling:
            self._halve("the process was killed")

    def _decide_warm_start(self) -> None:
        if self.progress.decided("warm") is None:
            answers = self._base_answers()
            mode = choose_verify(self.config, answers)
            checked: Mode = "gold" if mode.name == "gold" else "steps"
            self._write_verdicts(self._folder(BASE), answers, checked)
            right, tried = sum(each.verified(checked) for each in answers), self.sampler.num_first
            late = f" ({len(answers)} of them had time to end)" if len(answers) < tried else ""
            said = f"{right} of the base's first {counted(tried, 'answer')} are verified{late}"
            if needs_warm_start(right, tried):
                self._decide("warm", Choice("on", f"{said}; the human answers first, for a quarter of the time"))
            else:
                self._decide("verify", mode)  # of a model that learns the form first, its own answers decide
                self._decide("warm", Choice("off", f"{said}; it can learn from its own answers"))
        base, first, timed = self.run.rollouts / BASE, self._folder("sample-1"), self.progress.phase
        if not self._warm and base.is_dir() and not first.exists():  # they are the first answers of round 1
            base.rename(first)
            if timed is not None and timed.name == BASE:
                end = end_of(Phase("sample", 1), self._rounds, False, timed.began, self._end)
                self._record(replace(self.progress, phase=replace(timed, name="sample-1", end=end)))

    def _decide_verify(self, answers: Sequence[Rollout], ended: bool) -> None:
        """By all answers so far, when enough are right to say whether steps can be read; else when wave 1 has ended.

        Not later: which problems a later wave asks depends on it, and a run that goes on has to ask the same.
        """
        if self.progress.decided("verify") is None:
            right = sum(each.verdict.gold_right for each in answers)
            if ended or right >= FEWEST_RIGHT or self.config.verify != "auto":
                self._decide("verify", choose_verify(self.config, answers))

    def _decide_rounds(self, answers: Sequence[Rollout], timed: Timed) -> Timed:
        """By the first answers; gives the time that the sampling now has, which is noted in the same moment."""
        each = (answers[-1].seconds - timed.began) / len(answers) if answers else 0.0
        left = self._end - timed.began
        number = rounds_that_fit(left, each, len(self.sampler.problems)) if answers else 1
        timed = replace(timed, end=end_of(Phase("sample", 1), number, self._warm, timed.began, self._end))
        reason = (
            f"an answer takes {each:.2f} s, and there are {clock(left)}" if answers else "no answer had time to end"
        )
        self._decide("rounds", Choice(str(number), reason), phase=timed)
        return timed

    def _pays(self) -> bool:
        """Whether the model answers well enough; decided once, by a whole first block of what a warm start made of it.

        Where there was no time for either it is left open, and what there is says what this --max-time is used for.
        """
        first, of = self.answers[1][:FIRST_ANSWERS], self.sampler.num_first
        right = sum(each.verified(self.progress.mode) for each in first)
        if too_short := self._too_short(len(first), of):
            reason = f"{too_short}; --resume with twice this --max-time, or more, finds out whether rft pays"
            self._decide("pays", Choice(OPEN, reason), left_open=self.config.budget_seconds)
        elif self._warm:
            cost = tokens_a_row([len(each.completion.tokens) for each in first], right)
            said = f"{right} of the first {counted(len(first), 'answer')} are verified: "
            said += f"a kept row costs {cost:,.0f} tokens" if cost else "no row could be kept"
            if cannot_pay(right, len(first)):
                self._decide("pays", Choice("no", f"rft cannot pay here, {said}; going on with sft"))
            else:
                self._decide("pays", Choice("yes", said))
        if self._is_open:
            return right > 0 and not cannot_pay(right, len(first))
        return self.progress.decided("pays") != "no"

    @property
    def _is_open(self) -> bool:
        return self.progress.decided("pays") == OPEN

    def _too_short(self, answers: int, of: int) -> str:
        """What there was no time for, of all that says whether sampling pays; empty where it is there."""
        if self._warm and not self.progress.updates.get("warm"):
            return "there was no time for an update of the warm start"
        return f"{answers} of the first {counted(of, 'answer')} had time to end" if answers < of else ""

    # --- time -------------------------------------------------------------------------------------------------

    @property
    def _end(self) -> float:
        """When the last training has to be done, in seconds of the run, all but its opening and one update: those are
        kept for it whatever the phases before it took.
        """
        return self.config.budget_seconds - self.after - self.reserve - SPARE * (self.opening + self.update)

    def _begin(self, phase: Phase, name: str = "") -> Timed:
        """The phase's time: as it was recorded, where the run has the same --max-time."""
        name, now, budget = name or phase.name, self.elapsed(), self.config.budget_seconds
        asks = 0 if phase.kind == "sample" else None
        self.context.link.tell(phase=name, place=f"{self.run.rollouts.name}/{folder_of(name)}", answers=asks)
        known = self.progress.phase
        if known is not None and known.name == name and known.budget == budget:
            return known
        if name == BASE:
            end = end_of_first_block(now, self._end)
        else:
            end = end_of(phase, max(self._rounds, phase.round), self._warm, now, self._end)
        began = known.began if known is not None and known.name == name else now
        self._record(replace(self.progress, phase=Timed(name, began, end, budget)))
        assert self.progress.phase is not None
        return self.progress.phase

    def _sampling_end(self, number: int, timed: Timed) -> float:
        """When a round's sampling ends: of the last one later, where the training of its rows leaves time for it.

        That is its updates and the guard after a quarter; the rest of it is behind `_end`.
        """
        if self.progress.decided("rounds") is None or number < self._rounds or not self.pace:
            return timed.end
        job = replace(self.job, rows=replace(self.job.rows, examples=self._mixed() or self.job.rows.examples))
        updates = sum(job.tokens(self.model.micro_batch_tokens)) * self.pace
        return longer_sampling(timed.end, self._end, SPARE * (updates - self.update) + self.after)

    # --- sampling ---------------------------------------------------------------------------------------------

    def _folder(self, name: str) -> Path:
        return self.run.rollouts / folder_of(name)

    def _base_answers(self) -> list[Rollout]:
        """The base's answers to the first block of round 1."""
        timed, folder = self._begin(Phase("sample", 1), BASE), self.run.phase(BASE).folder
        self.sampler.check_key(folder, self._hash_of(FIRST))
        self.sampler.until = timed.end
        answers = self.sampler.first_block(self.model.backend, folder / RECORDS)
        if self.interrupted():
            raise Interrupted
        return answers

    def _sample(self, number: int) -> None:
        """Round `number`, to its end; its answers, from the disk where they are there."""
        name = f"sample-{number}"
        folder = self.run.phase(folder_of(name)).folder
        weights = f"train-{number - 1}" if number > 1 else "warm" if self.progress.updates.get("warm") else FIRST
        if name in self.progress.done:
            counts = (each for each in self.run.manifest.get(ROUNDS, ()) if each["round"] == number)
            answered = next((int(each["answered"]) for each in counts), None)
            self.answers[number] = self.sampler.read_closed(folder, answered)
            self.kept[number] = read_selected(folder / SELECTED, itertools.chain(*self.answers.values()))
            self._drop(weights)
            return
        self._hold(weights)
        self.sampler.check_key(folder, self._hash_of(weights))
        timed = self._begin(Phase("sample", number))
        self._answer(number, folder / RECORDS, timed)
        self.sampler.later = None
        if self.interrupted():
            raise Interrupted
        self._close(number, folder, timed)
        self._drop(weights)

    def _drop(self, weights: str) -> None:
        """Weights that have answered go, unless the warm start itself goes on, or may be asked again."""
        if weights == FIRST or (weights == "warm" and self.progress.decided("pays") != "yes"):
            return
        remove_all(self.run.phase(folder_of(weights)).checkpoints)

    def _answer(self, number: int, path: Path, timed: Timed) -> None:
        """Ask until all is asked or the time is over; with half as many at once where memory runs out."""
        earlier = list(itertools.chain(*self.answers.values()))

        def later() -> float:
            return self._sampling_end(number, timed)

        while True:
            self.sampler.until, self.sampler.later = timed.end, later
            try:
                for block, answers in self.sampler.blocks(self.model.backend, number, path, earlier):
                    self.answers[number] = answers
                    self.context.link.tell(answers=len(answers))
                    if self.interrupted():
                        return
                    self._decide_verify(answers, ended=block.wave > 1 or len(answers) == block.of)
                    if self.progress.decided("rounds") is None:
                        timed = self._decide_rounds(block.answers, timed)
                    if number == 1 and not self._pays():
                        return
                    # What is kept is looked through when the planned end has come, and not after every block.
                    self.sampler.until = timed.end if self.elapsed() < timed.end else later()
                return
            except OutOfMemoryError as error:
                if self.sampler.together == 1:
                    self.context.link.tell(final=True)  # another process would find the same
                    raise
                lost = isinstance(error, DeviceLostError)
                if not (lost and self.context.link.has_parent):  # whose next child halves them
                    self._halve(str(error))
                if lost:
                    raise

    def _halve(self, why: str) -> None:
        self.sampler.halve(why)
        self._record(replace(self.progress, together=self.sampler.together))

    def _close(self, number: int, folder: Path, timed: Timed) -> None:
        """The round's counts and its kept answers on the disk; then it is done."""
        self._decide_verify(self.answers[number], ended=True)
        kept, answers, samples = self._kept(), self.answers[number], self.config.samples
        self.kept[number] = kept
        ours = [each for found in kept.values() for each in found if each.sample // samples == number - 1]
        first = [each for each in answers if each.sample == (number - 1) * samples]
        if len(first) < len(self.sampler.problems):
            first = first[: Round.in_whole_blocks(len(first))]
        self._write_verdicts(folder, answers, self.progress.mode)
        counts = tally(
            number, answers, first, ours, self._human_chains(), self.progress.mode, self.elapsed() - timed.began
        )
        write_bytes(folder / SELECTED, as_lines(kept))
        write_json(folder / ROUND, counts.as_json())
        others = [each for each in self.run.manifest.get(ROUNDS, ()) if each["round"] != number]
        self.run.record(**{ROUNDS: [*others, counts.as_json()]})
        self._record(self.progress.with_done(f"sample-{number}"))
        self._tell(counts)

    def _write_verdicts(self, folder: Path, answers: Sequence[Rollout], mode: Mode) -> None:
        """Each answer's verdict anew, where it was written before it was decided by what answers are verified."""
        Appender(folder / RECORDS, answers, lambda: mode).close()

    def _tell(self, counts: Tally) -> None:
        self.context.terminal.say(round_line(counts))
        event = StepEvent("round", {**counts.as_json(), "elapsed": self.elapsed()})
        self.trackers.event(event)
        metrics = MetricsFile(self.run.metrics)
        try:
            metrics(event)
        finally:
            metrics.close()

    # --- what is kept -----------------------------------------------------------------------------------------

    def _human_chains(self) -> dict[str, Chain]:
        if not self.chains:
            for problem in self.sampler.explained:
                if chain := verify(problem.answer, "stop", problem.answer).chain:
                    self.chains[problem.id] = chain
        return self.chains

    def _kept(self) -> dict[str, list[Rollout]]:
        """The answers of all rounds so far that are kept, by problem; where the newest is done, those that it noted."""
        if (noted := self.kept.get(max(self.answers, default=0))) is not None:
            return noted
        prompts, limit = self.sampler.prompts, self.config.max_length

        def fits(each: Rollout) -> bool:
            return len(prompts[each.problem.id]) + len(each.completion.tokens) < limit

        answers = [each for number in sorted(self.answers) for each in self.answers[number]]
        known = self._human_chains() if self._mix == "both" else {}
        return kept_of(answers, self.config.keep, self.progress.mode, fits, known)

    def _rows(self) -> list[Example]:
        """The training rows of all that was kept so far; the human ones where nothing was.

        Raises DataError where own answers alone were asked for.
        """
        rows = self._mixed()
        if not rows and self.config.mix == "own":
            warm = "" if self._warm else ", or --warm-start on"
            enough = self.progress.enough
            more = f"--resume it with --max-time {math.ceil(enough / 60)}m or more, or " if enough else ""
            answers = counted(sum(map(len, self.answers.values())), "answer")
            raise DataError(
                f"--mix own: none of {answers} could be kept, so there is no row to train on (python cli.py inspect "
                f"--run {self.run.folder} --show 3 says why); {more}start a new run with --mix both{warm}"
            )
        return rows or self.job.rows.examples

    def _mixed(self) -> list[Example]:
        prompts, human = self.sampler.prompts, {example.id: example for example in self.job.rows.examples}
        own = {name: [own_row(each, prompts[name]) for each in kept] for name, kept in self._kept().items()}
        return mix(self._mix, list(prompts), own, human)

    # --- training ---------------------------------------------------------------------------------------------

    def _checkpoint(self, name: str) -> Checkpoint:
        """The weights that a training in between ended with."""
        folder, wanted = self.run.phase(folder_of(name)).checkpoints, self.progress.updates.get(name)
        checkpoint = newest(folder, self.context.terminal.say)
        if checkpoint is None or checkpoint.update != wanted:
            raise DataError(f"{folder} has no whole checkpoint of update {wanted}; bring it back, or start a new run")
        return checkpoint

    def _hash_of(self, weights: str) -> str:
        if weights == FIRST:
            return self.job.hashes["model"]
        checkpoint = self._checkpoint(weights)
        return "+".join(file_hash(checkpoint.folder / name) for name in checkpoint.weights)

    def _hold(self, weights: str) -> None:
        """Let the model hold these weights, whatever it held before."""
        if weights == self.weights:
            return
        self._open(self.job)
        if weights != FIRST:
            config, state = self._segment_of(self.job, self.run).trained_config(), self._checkpoint(weights).state()
            self.model.backend.train(iter(()), config, _Unasked(), state)
        self.weights = weights

    def _segment_of(self, job: Job, run: Run) -> Segment:
        return Segment(job, self.model, run, self.context, self.trackers, self.interrupted)

    def _open(self, job: Job) -> None:
        """The model again, with the weights that the run began with."""
        self.model.backend.close()
        dtype = job.dtype or self.model.choices["dtype"]
        config = job.config.model_copy(update={"dtype": dtype.name})
        self.model = open_model(replace(job, config=config, dtype=dtype), self.context)
        self.weights = FIRST

    def _opened(self, rows: Sequence[Example], run: Run, config: TrainConfig, checkpoint: Checkpoint | None) -> Job:
        """A training on `rows` in the folder of `run`, its model opened for it and rehearsed."""
        hashes = {**self.job.hashes, "trained": rows_hash(rows)}
        between = run is not self.run
        unfinished = between or self.job.unfinished
        checkpoint = newest_of_phase(run, config, hashes, unfinished, self.context, between) or checkpoint
        adjustments = tuple(adjustments_of(run.manifest))
        job = replace(
            self.job,
            config=config,
            rows=replace(self.job.rows, examples=list(rows), longest_own=0),
            hashes=hashes,
            run=run,
            checkpoint=checkpoint,
            adjustments=adjustments,
            dtype=dtype_of(adjustments),
            unfinished=unfinished,
        )
        self._open(job)
        rehearse(job, self.model, self.elapsed, self.context.terminal)
        if self.model.rehearsed:
            self.pace, self.opening = self.model.rehearsed, self.model.seconds
        return job

    def _train(self, phase: Phase, rows: Sequence[Example]) -> None:
        """A training whose model only samples; its last checkpoint is kept for that."""
        if phase.name in self.progress.done:
            return
        timed, run = self._begin(phase), self.run.phase(folder_of(phase.name))
        self.context.terminal.say(f"{phase.name:<8} {counted(len(rows), 'row')}, until {clock(timed.end)} of the run")
        values = {"max_time": f"{timed.end:.3f}", "guard_problems": 0, "eval_steps": 0}
        job = self._opened(rows, run, self.config.model_copy(update=values), None)
        # A tracker knows one curve: that of the model which is kept.
        segment = replace(self._segment_of(job, run), trackers=Trackers([]))
        try:
            outcome, pilot = segment.train_on()
        except NoTimeError:  # what follows may have some all the same
            until = f"no update has time until {clock(timed.end)} of the run"
            self.context.terminal.say(f"{phase.name:<8} passed over: {until}")
            self._record(self.progress.with_done(phase.name, 0))
            return
        self.model, self.weights = segment.model, phase.name
        if (dtype := segment.job.dtype) is not None:  # found out in that phase, and the next ones begin with it
            self.run.record(choices={**self.run.manifest["choices"], **as_json({"dtype": dtype})})
        if outcome.reason == STOP_INTERRUPTED:
            raise Interrupted
        updates = len(pilot.losses)
        segment.keep_last(updates)
        self._record(self.progress.with_done(phase.name, updates))

    def _last(self, rows: Sequence[Example], from_warm: bool = False) -> Segment:
        """The last training; `from_warm`: the warm start goes on, on the human rows."""
        self._begin(Phase("train", self._rounds))
        self.context.link.tell(phase="the training", place="", answers=None)
        from_warm = from_warm and self.progress.updates.get("warm", 0) > 0
        own = sum("/own-" in row.id for row in rows)
        mixed = f"{counted(own, 'answer')} of its own and {len(rows) - own:,} human ones"
        if not own:
            mixed = (
                f"human answers alone{', on from the warm start' if from_warm else ', since none of its own was kept'}"
            )
        self.context.terminal.say(f"train    {counted(len(rows), 'row')}: {mixed}")
        warm = self._with_guard(self._checkpoint("warm")) if from_warm else None
        job = self._opened(rows, self.run, self.config, warm)
        trained = {"rows": len(rows), "own": own, "sha256": job.hashes["trained"], "mix": self._mix}
        self.run.record(choices=as_json(self.model.choices), trained=trained)
        return self._segment_of(job, self.run)

    def _with_guard(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint of the warm start, with what the base showed before it."""
        facts: Mapping[str, Any] = {**checkpoint.facts, "guard": self.run.manifest.get("guard")}
        return replace(checkpoint, facts=facts)
