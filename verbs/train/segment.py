"""A stretch of a run: a model trained under its pilot, its checkpoints written, until the end, a stop or a failure."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import remove_folder, same_files
from gsm8k_core.models.adapter import lora_spec, mlx_command, write_mlx_adapter
from gsm8k_core.models.folder import ModelFolder, copy_model_folder
from gsm8k_core.models.tensors import NumberTooLarge
from gsm8k_core.tracking.feed import Trackers
from gsm8k_core.tracking.panel import ASKED, Panel, Setting
from gsm8k_core.tracking.terminal import MetricsFile, Steps
from gsm8k_core.training.best import read_label, write_label
from gsm8k_core.training.budget import slowdown
from gsm8k_core.training.checkpoints import newest, prune, write
from gsm8k_core.training.health import Probe
from gsm8k_core.training.measure import DevResult, DevSet, Guard, base_line, measure_base, recipe_line, room_for_base
from gsm8k_core.training.memory import model_of, saved_bytes, write_seconds
from gsm8k_core.training.pilot import STOP_BUDGET, Hooks, Past, RunPilot
from gsm8k_core.training.plan import Change, wider
from gsm8k_core.training.runs import Run
from gsm8k_core.types import (
    Choice,
    CollapsedError,
    DeviceLostError,
    DivergedError,
    GSM8KError,
    Outcome,
    OutOfMemoryError,
    StepEvent,
    StorageError,
    Update,
)
from verbs import Context, as_json, say_choices
from verbs.train.model import NoTimeError, OpenModel, no_time, open_model, rehearse
from verbs.train.policy import PolicyRun
from verbs.train.recovery import go_on, is_whole, keep, keep_model, name_newest
from verbs.train.room import out_of_room, room_of
from verbs.train.signals import Interrupted
from verbs.train.start import Job
from verbs.train.words import Narrator, say_plan, title_of

Result = TypeVar("Result")
END_SECONDS = 2.0  # beside the weights: small files, run.json, and the end of the process
KNOWN_UPDATES = 2000  # a third of a second
MEASURED = ("eval_problems", "eval_max_new_tokens")
LESS_MEMORY = "try --gradient-checkpointing, --method lora, or a smaller --max-length"
MOMENTS = 3  # a checkpoint holds what is trained three times: itself and two moments


@dataclass(slots=True)
class Segment:
    """A stretch of a run: from the start or a checkpoint to the end, a stop or a failure."""

    job: Job
    model: OpenModel
    run: Run
    context: Context
    trackers: Trackers
    interrupted: Callable[[], bool]
    pilot: RunPilot[Any] | None = None  # from the start of its training on
    changed: bool = False  # whether it begins with a change that a failure asked for
    heard: dict[str, str] = field(default_factory=dict)  # what the base answered to dev problems, by their ids
    policy: PolicyRun | None = None  # of --recipe grpo: what makes its updates, from the start of its training on

    def elapsed(self) -> float:
        """Seconds of the whole run."""
        return self.job.seconds + self.context.elapsed()

    def train_on(self) -> tuple[Outcome, RunPilot[Any]]:
        """Segment after segment, until one ends well or nothing is left to try; then this is that one."""
        return self._until_it_ends_well(self.train)

    def _until_it_ends_well(self, work: Callable[[], Result]) -> Result:
        while True:
            try:
                return work()
            except StorageError as error:
                self.keep_what_fits(error)
            except (DivergedError, OutOfMemoryError) as error:
                # Its frames hold what filled the memory.
                failure: GSM8KError = error.with_traceback(None)
                failure.__context__ = failure.__cause__ = None
            self._recover(failure)

    def _recover(self, error: GSM8KError) -> None:
        """Become the next segment, as the pilot decides. Raises `error` when nothing is left to try."""
        live, say = self.model.backend, self.context.terminal.say
        if self.pilot is None:  # it came before the first update could, and so from the base's answers
            done, change = self.job.done, wider(error, self.model.choices["dtype"].name)
            if change is None:
                raise error
        else:
            done = len(self.pilot.losses)
            if isinstance(error, CollapsedError) and not is_whole(live, done):
                error.damaged = True  # the probe saw logits alone
            change = self.pilot.after_failure(error)
            if change is None:
                self._fail(error, live, done)
        if isinstance(error, DeviceLostError):
            self._leave(error, change)
        if change.save:
            keep(live, done, self._save, say)
        job = go_on(change, error, self.job, self.run, self.model.micro_batch_tokens, say)
        if self.policy is not None:
            self.policy.close()
        self.policy = self.pilot = None  # they hold the model
        live.close()
        # Measured, or found out, once in a run.
        choices = self.model.choices
        dtype, batches = job.dtype or choices["dtype"], job.batches or choices["batches"]
        config = job.config.model_copy(update={"dtype": dtype.name})
        memory = None if change.what == "micro_batch_tokens" else self.model.plan or job.memory
        self.job = replace(job, config=config, dtype=dtype, batches=batches, memory=memory)
        self.model, self.changed = open_model(self.job, self.context), True
        rehearse(self.job, self.model, self.elapsed, self.context.terminal)
        self.run.record(choices=as_json(self.model.choices))

    def _leave(self, error: DeviceLostError, change: Change) -> NoReturn:
        """Raise `error`: this process can do nothing more. A parent starts another one, else it says what to type."""
        if self.context.link.has_parent:
            raise error
        again = ["python", "cli.py", "train", "--resume", str(self.run.whole.folder)]
        again += ["--micro-batch-tokens", str(change.value), "--force"]
        raise DeviceLostError(f"{error}; go on in a new process: {shlex.join(again)}")

    def keep_what_fits(self, error: StorageError) -> NoReturn:
        """Raise `error` for good: nothing more can be written. The weights become a checkpoint where one fits."""
        self.run.check_held()
        if self.pilot is None:  # it came before the first update could
            raise error
        done, found = len(self.pilot.losses), newest(self.run.checkpoints, self.context.terminal.say)
        room = room_of(self.job)
        if done > (found.update if found else 0) and room.free >= room.checkpoint:
            keep(self.model.backend, done, self._save, self.context.terminal.say)
        out_of_room(error, self.job, self.run)

    def _fail(self, error: GSM8KError, live: Any, done: int) -> NoReturn:
        """Raise `error` for good, with the weights after `done` updates kept where they are worth it."""
        say = self.context.terminal.say
        if isinstance(error, OutOfMemoryError):
            if done > self.job.done:
                keep(live, done, self._save, say)
            self.context.link.tell(final=True)  # it was one row at a time
            raise OutOfMemoryError(f"{error}; each micro-batch is one row already: {LESS_MEMORY}")
        if isinstance(error, CollapsedError):  # its weights are numbers, and no model
            name_newest(self.run, say)
        else:
            keep_model(self.run, live, done, self.save_model, say)
        raise error

    def train(self) -> tuple[Outcome, RunPilot[Any]]:
        """One segment."""
        job, config, terminal = self.job, self.job.config, self.context.terminal
        self._prepare_base()
        say_plan(job, self.run.folder, terminal)
        dev = self._dev_set()
        guard = self._guard(dev)
        if config.recipe == "sft" and not job.done and (line := recipe_line(guard)):
            terminal.say(line)
        metrics = MetricsFile(self.run.metrics, self.run.whole.folder)
        with self._shown() as shown:
            narrator = Narrator(job, shown, terminal)

            def emit(event: StepEvent) -> None:
                metrics(event)
                self.trackers.event(event)
                narrator(event)

            self.policy = self._policy(narrator)
            self.pilot = pilot = RunPilot(config, self._hooks(emit, dev, guard), self._past(guard))
            values = {"updates": pilot.total, "rows": len(job.rows.examples), "elapsed": self.elapsed()}
            emit(StepEvent("resume" if job.done else "start", {**values, "update": job.done}))
            if self.changed:
                emit(StepEvent("adjust", job.adjustments[-1].as_json()))
            state = job.checkpoint.state() if job.checkpoint else None
            try:
                spent = self._spent(pilot)
                self._record_plan(pilot)
                updates = iter(()) if spent else self._updates(pilot)
                outcome = self.model.backend.train(updates, self.trained_config(), pilot, state)
                if spent:
                    why = self.policy.stops(pilot.guard) if self.policy else None
                    outcome = Outcome("done" if job.done >= job.total else why or STOP_BUDGET, job.done)
                elif self.policy is not None and self.policy.policy.ended:
                    outcome = self._left_early(pilot)
                emit(StepEvent("end", {"reason": outcome.reason, "update": outcome.update, "elapsed": self.elapsed()}))
            except GSM8KError as error:
                with suppress(StorageError):  # which may be the very error
                    emit(StepEvent("failed", {"reason": str(error), "elapsed": self.elapsed()}))
                raise
            finally:
                metrics.close()
        self._record_plan(pilot)
        self._note_choices()
        return outcome, pilot

    def _shown(self) -> Panel | Steps:
        """How a person sees it go on: a panel where the terminal has room for one, else a bar or plain lines."""
        job, terminal = self.job, self.context.terminal
        if not Panel.fits(terminal):
            return terminal.progress("update", job.events[-1].total, job.done)
        sizes = model_of(job.source.model.config, job.config)
        asked = job.rows.looked_at[:ASKED]
        setting = Setting(
            title_of(job),
            job.total,
            job.events[-1].total,
            job.done,
            job.config.budget_seconds,
            job.checkpoint.losses if job.checkpoint and job.config.recipe != "grpo" else (),
            sizes.num_trained if sizes else None,
            [(problem.question, problem.gold) for problem in asked],
            {at: self.heard[problem.id] for at, problem in enumerate(asked) if problem.id in self.heard},
        )
        return Panel(terminal, setting, self.elapsed, self.model.backend.peak_memory, self.interrupted)

    def _policy(self, hear: Callable[[StepEvent], None]) -> PolicyRun | None:
        if self.job.config.recipe != "grpo":
            return None
        return PolicyRun(self.job, self.model, self.run, self.context, self.elapsed, self.interrupted, hear)

    def _updates(self, pilot: RunPilot[Any]) -> Iterator[Update]:
        if self.policy is not None:
            return self.policy.updates(pilot)
        return self.job.updates(self.model.micro_batch_tokens)

    def _left_early(self, pilot: RunPilot[Any]) -> Outcome:
        """The end of updates that were not made, since a signal came or there was no time.

        Raises Interrupted or NoTimeError where there is no update at all.
        """
        done = len(pilot.losses)
        if not done and self.interrupted():
            raise Interrupted
        if not done:
            raise self._no_time(pilot, 0.0)
        return Outcome(pilot.left_early(self.model.backend), done)

    def _spent(self, pilot: RunPilot[Any]) -> bool:
        """Whether there is no time for another update: then the checkpoint's weights become the model.

        Raises NoTimeError where there is none either.
        """
        job = self.job
        if job.only_model_is_missing:
            return True
        if pilot.begin() and self.elapsed() < job.config.budget_seconds:
            return False
        if not job.done:
            raise self._no_time(pilot, self.model.update_seconds)
        return True

    def _no_time(self, pilot: RunPilot[Any], update: float) -> NoTimeError:
        """Of a run that has its folder and could not do one update, which takes so many seconds."""
        folder = self.run.whole.folder
        left = f"{folder} has what the run made so far and no weights (--resume {folder} goes on with it)"
        return NoTimeError(no_time(self.job, self.elapsed(), update, left, pilot.kept_after(1)))

    def _note_choices(self) -> None:
        """Say and keep what the backend chose, or counted, while it trained."""
        found = self.model.backend.choices
        changed = {name: choice for name, choice in found.items() if self.model.choices.get(name) != choice}
        say_choices(self.context.terminal, changed)
        self.run.record(
            choices={**self.run.manifest.get("choices", {}), **as_json(changed)}, memory=self.model.memory()
        )

    def save_model(self) -> None:
        """The end of the run's files: model/, and an adapter in mlx-lm's layout as well.

        Each save has a name of its own, which a score of these weights bears as well: a run that goes on may come to
        as many updates again, and a kill in here leaves the weights of one save or of the other. One that took no
        update writes the same weights again: they keep their name, and their scores.
        """
        backend, spec = self.model.backend, lora_spec(self.job.config)
        assert self.pilot is not None  # its updates made the weights
        self.run.sync_metrics()
        self.run.replace(self.run.model, self._save_model)
        if spec is not None:
            values, base = backend.state().parameters, self.trained_config().model
            asked = self.job.source.model.rendering
            self.run.replace(self.run.mlx_adapter, lambda folder: write_mlx_adapter(folder, values, spec, base, asked))
            under = ModelFolder(self.run.base) if self.model.quantized else self.job.source.model
            if command := mlx_command(under, base, self.run.mlx_adapter):
                said = (
                    f"mlx-lm does not read all of the base's config.json; {self.run.mlx_adapter} opens with {command}"
                )
                self.context.terminal.say(f"note     {said}")
        name = self.run.manifest.get("model_save") or uuid.uuid4().hex
        self.run.record(model_update=len(self.pilot.losses), model_save=name)

    def _save_model(self, folder: Path) -> None:
        """The weights as the base's are stored, or as was asked for."""
        saved = self.model.choices.get("saved")
        try:
            self.model.backend.save(folder, saved.name if saved else "float32")
        except NumberTooLarge as error:
            self.context.terminal.say(f"saved    float32, and not {saved.name if saved else ''}: {error}")
            self.model.backend.save(folder)
            instead = {"saved": Choice("float32", str(error))}
            self.run.record(choices={**self.run.manifest.get("choices", {}), **as_json(instead)})
        if not self._holds(folder):
            self.run.record(model_update=None, model_save=None)

    def _holds(self, folder: Path) -> bool:
        """Whether model/ is of as many updates, and the same as what was written to `folder`."""
        assert self.pilot is not None
        same_update = self.run.manifest.get("model_update") == len(self.pilot.losses)
        return same_update and same_files(folder, self.run.model)

    def guard_now(self) -> Guard:
        """What the base showed, before what comes before this segment's training. The model may be another one then."""
        return self._until_it_ends_well(lambda: self._guard(self._dev_set()))

    def keep_last(self, update: int) -> None:
        """A checkpoint of the weights after `update`, the last one, unless there is one."""
        found = newest(self.run.checkpoints, self.context.terminal.say)
        if found is None or found.update != update:
            self._save(update, self.model.backend)

    def _prepare_base(self) -> None:
        source, base = self.model.quantized, self.run.base
        if source is not None and source != base:
            self.run.check_held()
            if base.exists():  # a kill came before it was noted
                remove_folder(base)
            copy_model_folder(source, base)
            self.run.record(base={"hash": ModelFolder(base).hash, "made_by": "mlx-lm", "folder": base.name})

    def trained_config(self) -> TrainConfig:
        """The settings, with the name that an adapter gives its base and with the micro-batches that were chosen."""
        base = str(self.run.base.resolve()) if self.model.quantized else self.job.config.model
        return self.job.config.model_copy(
            update={"model": base, "micro_batch_tokens": str(self.model.micro_batch_tokens)}
        )

    def _record_plan(self, pilot: RunPilot[Any]) -> None:
        """The plan as it now is, with every change of it."""
        config = self.job.config
        self.run.record(
            plan={
                "updates": pilot.total,
                "asked": pilot.asked,
                "update_size": config.update_size,
                "budget_seconds": config.budget_seconds,
                "events": [event.as_json() for event in pilot.events],
            }
        )

    def _hooks(self, emit: Callable[[StepEvent], None], dev: DevSet | None, guard: Guard) -> Hooks[Any]:
        return Hooks(
            emit=emit,
            elapsed=self.elapsed,
            interrupted=self.interrupted,
            save=self._save,
            keep_best=self._keep_best,
            slept=lambda: self.context.elapsed.slept,
            evaluate=dev.measure if dev else None,
            answer=guard.measurement(dev) if dev and guard.base else None,
            probe=self._probe(),
            **({} if self.policy is None else {"more": self.policy.values, "stops": self.policy.stops}),
        )

    def _past(self, guard: Guard) -> Past:
        job = self.job
        writing = self._write_seconds()
        return Past(
            job.events,
            job.checkpoint.losses if job.checkpoint else (),
            self._best(),
            guard,
            job.adjustments,
            # Those of so many updates are known beforehand; the others are taken for average.
            tokens=list(islice(job.tokens(self.model.micro_batch_tokens), KNOWN_UPDATES)),
            micro_batch_tokens=self.model.micro_batch_tokens,
            widest=job.widest,
            dtype=self.model.choices["dtype"].name,
            rehearsed=self.model.rehearsed,
            reserve=self._reserve(writing),
            save_reserve=MOMENTS * writing,
            pace=self.policy.pace if self.policy else None,
        )

    def _write_seconds(self) -> float:
        job = self.job
        return write_seconds(self.run.folder, saved_bytes(job.source.folder, lora_spec(job.config)))

    def _reserve(self, writing: float) -> float:
        return writing + END_SECONDS * slowdown() + self.trackers.reserve

    def reserve_now(self) -> float:
        """Seconds that the end of the run may take after its last update and guard, with the checkpoint of a stop."""
        writing = self._write_seconds()
        return self._reserve(writing) + MOMENTS * writing

    def _keep_best(self, update: int, live: Any, result: DevResult) -> Path:
        """best/ of the weights after `update`, with its label."""

        def write(folder: Path) -> None:
            live.save(folder)
            write_label(folder, update, result)

        self.run.replace(self.run.best, write)
        self.run.record(best={"update": update})
        return self.run.best

    def _save(self, update: int, live: Any) -> Path:
        """A checkpoint of the weights after `update`."""
        job, pilot = self.job, self.pilot
        self.run.sync_metrics()
        assert pilot is not None  # it is the pilot who asks
        kept, config = pilot.as_json(), job.config.model_dump(mode="json")
        limit, room = job.config.save_total_limit, room_of(job)
        if room.free < room.checkpoint:  # those that will be too many go before, and not after
            prune(self.run.checkpoints, max(limit - 1, 1))
        folder = write(
            self.run.checkpoints,
            live,
            update=update,
            elapsed=self.elapsed(),
            events=kept["events"],
            losses=kept["losses"],
            facts={
                "best": kept["best"],
                "guard": kept["guard"],
                "hashes": dict(job.hashes),
                "config": config,
                **(self.policy.kept(update) if self.policy else {}),
            },
        )
        prune(self.run.checkpoints, limit)
        return folder

    def _best(self) -> Mapping[str, Any] | None:
        """The best so far, where the label in best/ says the same and it was measured on the same problems.

        Killed between a best/ and the checkpoint after it, a run goes on with weights that come before it.
        """
        label = read_label(self.run.best)
        lies_there = None if label is None else {"update": label.update}
        if self.run.manifest.get("best") != lies_there:
            self.run.record(best=lies_there)
        facts = self.job.checkpoint.facts if self.job.checkpoint else {}
        best, before = facts.get("best"), facts.get("config", {})
        same = all(before.get(name) == getattr(self.job.config, name) for name in MEASURED)
        if not best or not same:
            return None
        if label is None:
            what = "has no label that can be read"
        elif not label.names(best):
            what = f"holds update {label.update}, by its label"
        elif not label.fits(self.run.best):
            what = "is damaged"
        else:
            found: Mapping[str, Any] = best
            return found
        self.context.terminal.say(
            f"best     {self.run.best} {what}: it is not update {best['update']}, the best one so far; "
            "the best is looked for from here on"
        )
        return None

    def _probe(self) -> Probe | None:
        rows, model = self.job.rows.probed, self.job.source.model
        return Probe(rows, model.rendering.end_ids, model.rendering.text) if rows else None

    def _dev_set(self) -> DevSet | None:
        config, pairs = self.job.config, self.job.rows.dev
        if not pairs:
            if config.eval_steps:
                self.context.terminal.say("dev      these rows have no dev split, so --eval-steps measures nothing")
            return None
        return DevSet(
            [example for _, example in pairs],
            [problem for problem, _ in pairs],
            self.job.source.model.rendering.text,
            batch_size=config.batch_size,
            eval_batch_size=min(len(pairs), int(self.model.choices["dev"].name)),
            max_new_tokens=config.eval_max_new_tokens,
        )

    def _guard(self, dev: DevSet | None) -> Guard:
        """What the base showed: now, unless it was measured when the run began."""
        config, base = self.job.config, self.model.backend  # nothing is trained yet
        if not config.guard_problems:
            return Guard(reason="--guard-problems 0")
        if (known := self._known_guard()) is not None:
            return known
        room = room_for_base(max(config.budget_seconds - self.elapsed(), 0.0), self.model.update_seconds)
        if dev:
            dev = replace(dev, heard=self.heard.__setitem__)
        self.context.terminal.doing("the base answers dev problems first")
        try:
            guard = (
                measure_base(dev, base, config.guard_problems, room, self.interrupted)
                if dev
                else Guard(reason="these rows have no dev split")
            )
        except OutOfMemoryError:  # training may have room all the same
            guard = Guard(reason="there was no memory for its answers")
        self.context.terminal.say(base_line(guard))
        if guard.base is not None or not self.interrupted():  # after a signal, a run that begins again measures it then
            self.run.record(guard=guard.as_json())
        return guard

    def _known_guard(self) -> Guard | None:
        """What an earlier part of the run measured; None where this is its beginning."""
        job = self.job
        facts = job.checkpoint.facts if job.checkpoint else self.run.manifest
        longest = facts.get("config", {}).get("eval_max_new_tokens")
        if facts.get("guard") and longest == job.config.eval_max_new_tokens:
            return Guard.from_json(facts["guard"])
        return Guard(reason="the run began without it, or with answers of another length") if job.done else None
